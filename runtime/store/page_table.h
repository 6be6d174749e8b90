// PageTable: the pages of one layer of one context on one rank. A copy is a fork: it holds the same
// pages, copies no KV byte, and gets a page of its own where it, or the original, is written next.
// Thread-compatible; forks may be used by different threads. pages_held() is thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/types.h"
#include "attention/backend.h"
#include "attention/kv_view.h"
#include "attention/select/summaries.h"
#include "base/cow_array.h"
#include "runtime/store/page_arena.h"
#include "sharding/head_map.h"

namespace annulus {

// Where the pages of a layer come from: an arena for each KV head, so that a head's blocks follow
// each other in memory, since decode streams through them. Forks share them.
struct LayerArenas {
  explicit LayerArenas(MemorySpace& space) : memory(space) {}

  // Held where a table of theirs changes, is copied or goes, which touches what forks share. Pages
  // are written and read without it: whoever writes to one holds it alone.
  std::mutex mutex;
  SlabMemory memory;
  std::deque<PageArena> by_head;
};

class PageTable {
 public:
  // Summaries of pages (attention/select/summaries.h) that lie behind their KV, of the same memory:
  // they are made when a page is sealed, and shared, copied and zeroed with it.
  using Summaries = std::shared_ptr<const std::vector<PageSummary>>;

  // Blocks of the KV heads `heads`; `arenas` has one for each, of pages of PageBytesWith.
  PageTable(const ContextSpec& spec, HeadRanges heads, std::shared_ptr<LayerArenas> arenas,
            Summaries summaries);
  ~PageTable();
  PageTable(const PageTable& other)  // a fork
      : PageTable(other, std::lock_guard<std::mutex>(other.arenas_->mutex)) {}
  PageTable& operator=(const PageTable&) = delete;

  // Of a page with its summaries.
  static int64_t PageBytesWith(const ContextSpec& spec, const std::vector<PageSummary>& summaries);

  const HeadRanges& heads() const { return heads_; }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t pages_held() const { return pages_held_.load(std::memory_order_relaxed); }  // shared too
  const KvTable& kv() const { return kv_; }

  // Makes room for blocks [0, blocks).
  void Extend(int64_t blocks);

  // So many pages will be written next, over all heads, that are not there yet. Their bytes are
  // counted already.
  void Expect(int64_t pages);
  // How many of them were not; none is expected any more.
  int64_t ExpectNoMore();

  // nullptr where there is none.
  const Page* Find(int head, int64_t block) const;

  // Makes the summaries of a page whose rows are all there.
  void Summarise(Page* page) const;
  // [parts, width] of a page; null where the page is not sealed or nothing of that form is kept.
  const float* Summary(const PageSummary& form, int head, int64_t block) const;
  bool Keeps(const PageSummary& form) const;

  // Whether writing to it takes a new page.
  bool WriteNeedsPage(int head, int64_t block) const;

  // The page, made or copied so that nobody else holds it, and not sealed. There must be room in
  // the table. Errors are those of the memory space.
  absl::StatusOr<Page*> Write(int head, int64_t block);

  // Lets go of a page, if there is one.
  void Drop(int head, int64_t block);
  // Lets go of all from `blocks` on, and of their room.
  void Cut(int64_t blocks);

 private:
  PageTable(const PageTable& other, const std::lock_guard<std::mutex>&);

  void Hold(int64_t pages) { pages_held_.fetch_add(pages, std::memory_order_relaxed); }
  // Which of `heads` it is.
  int Place(int head) const {
    int before = 0;
    for (const HeadRange& range : heads_) {
      if (head < range.end()) return before + head - range.first;
      before += range.count;
    }
    return before;
  }
  size_t Index(int head, int64_t block) const {
    return static_cast<size_t>(block * heads_count_ + Place(head));
  }

  std::shared_ptr<LayerArenas> arenas_;  // outlives pages_
  HeadRanges heads_;
  int heads_count_;
  Summaries summaries_;
  int64_t kv_bytes_;    // of a page, before its summaries
  int64_t page_bytes_;  // of all of it
  int64_t k_bytes_;     // of a page, before its V
  KvPage strides_;
  CowArray<PageRef> pages_;
  KvTable kv_;
  std::atomic<int64_t> pages_held_ = 0;
  int64_t expected_ = 0;
};

}  // namespace annulus
