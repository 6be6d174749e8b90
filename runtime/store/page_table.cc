#include "runtime/store/page_table.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "runtime/context/layout.h"

namespace annulus {
namespace {

using Lock = std::lock_guard<std::mutex>;

}  // namespace

int64_t PageTable::PageBytesWith(const ContextSpec& spec,
                                 const std::vector<PageSummary>& summaries) {
  size_t floats = 0;
  for (const PageSummary& form : summaries) floats += form.page_floats();
  return PageBytes(spec) + static_cast<int64_t>(floats * sizeof(float));
}

PageTable::PageTable(const ContextSpec& spec, HeadRanges heads, std::shared_ptr<LayerArenas> arenas,
                     Summaries summaries)
    : arenas_(std::move(arenas)),
      heads_(std::move(heads)),
      heads_count_(CountOf(heads_)),
      summaries_(std::move(summaries)),
      kv_bytes_(PageBytes(spec)),
      page_bytes_(PageBytesWith(spec, *summaries_)),
      k_bytes_(spec.v_is_k_prefix
                   ? 0
                   : kBlockTokens * spec.head_dim * static_cast<int64_t>(SizeOf(spec.dtype))),
      strides_{nullptr, nullptr, spec.head_dim,
               spec.v_is_k_prefix ? spec.head_dim : spec.v_head_dim},
      kv_(spec.dtype, SpanOf(heads_).first, SpanOf(heads_).count, spec.head_dim, spec.v_head_dim,
          /*blocks=*/0) {
  kv_.set_memory(arenas_->memory.space().kind());
}

PageTable::PageTable(const PageTable& other, const Lock&)
    : arenas_(other.arenas_),
      heads_(other.heads_),
      heads_count_(other.heads_count_),
      summaries_(other.summaries_),
      kv_bytes_(other.kv_bytes_),
      page_bytes_(other.page_bytes_),
      k_bytes_(other.k_bytes_),
      strides_(other.strides_),
      pages_(other.pages_),
      kv_(other.kv_),
      pages_held_(other.pages_held()) {}

PageTable::~PageTable() {
  Cut(0);
}

void PageTable::Extend(int64_t blocks) {
  const Lock lock(arenas_->mutex);
  const auto size = static_cast<size_t>(blocks * heads_count_);
  if (size <= pages_.size()) return;
  pages_.Resize(size);
  kv_.Extend(blocks);
}

void PageTable::Expect(int64_t pages) {
  if (heads_count_ == 0) return;
  const Lock lock(arenas_->mutex);
  expected_ = pages;
  const auto count = static_cast<size_t>(pages);
  const auto heads = static_cast<size_t>(heads_count_);
  const size_t of_head = (count + heads - 1) / heads;
  for (PageArena& arena : arenas_->by_head) arena.Expect(of_head);
  arenas_->memory.Expect(heads * of_head * arenas_->by_head.front().page_bytes());
}

int64_t PageTable::ExpectNoMore() {
  return std::exchange(expected_, 0);
}

const Page* PageTable::Find(int head, int64_t block) const {
  const size_t index = Index(head, block);
  return index < pages_.size() ? pages_[index].get() : nullptr;
}

void PageTable::Summarise(Page* page) const {
  auto* to = reinterpret_cast<float*>(page->data + kv_bytes_);
  for (const PageSummary& form : *summaries_) {
    SummarisePage(form, page->data, kv_.dtype(), strides_.k_row_stride, kBlockTokens, to);
    to += form.page_floats();
  }
}

bool PageTable::Keeps(const PageSummary& form) const {
  return std::any_of(summaries_->begin(), summaries_->end(),
                     [&](const PageSummary& kept) { return kept.SamePages(form); });
}

const float* PageTable::Summary(const PageSummary& form, int head, int64_t block) const {
  const Page* const page = Find(head, block);
  if (page == nullptr || !page->sealed) return nullptr;
  const auto* at = reinterpret_cast<const float*>(page->data + kv_bytes_);
  for (const PageSummary& kept : *summaries_) {
    if (kept.SamePages(form)) return at;
    at += kept.page_floats();
  }
  return nullptr;
}

bool PageTable::WriteNeedsPage(int head, int64_t block) const {
  const Lock lock(arenas_->mutex);
  const size_t index = Index(head, block);
  return index >= pages_.size() || !pages_[index] || pages_[index].shared() || pages_.Shared(index);
}

absl::StatusOr<Page*> PageTable::Write(int head, int64_t block) {
  const Lock lock(arenas_->mutex);
  PageRef& page = pages_.Mutable(Index(head, block));
  if (!page || page.shared()) {
    PageArena& arena = arenas_->by_head[static_cast<size_t>(Place(head))];
    ANNULUS_ASSIGN_OR_RETURN(PageRef own, arena.Allocate(/*counted=*/expected_ > 0));
    if (expected_ > 0) --expected_;
    if (page) {
      const size_t bytes = arena.page_bytes();
      ANNULUS_RETURN_IF_ERROR(
          arena.space().Copy({{page->data, own->data, 1, bytes, bytes, bytes}}));
    }
    Hold(page ? 0 : 1);
    page = std::move(own);
    KvPage view = strides_;
    view.k = page->data;
    view.v = page->data + k_bytes_;
    kv_.Set(head, block, view);
  }
  page->sealed = false;
  return page.get();
}

void PageTable::Drop(int head, int64_t block) {
  const Lock lock(arenas_->mutex);
  const size_t index = Index(head, block);
  if (index >= pages_.size() || !pages_[index]) return;
  pages_.Mutable(index) = PageRef();
  kv_.Set(head, block, {});
  Hold(-1);
}

// A chunk at a time, since pages that nobody holds any more are zeroed, which takes a while.
void PageTable::Cut(int64_t blocks) {
  const auto size = static_cast<size_t>(blocks * heads_count_);
  while (size < pages_.size()) {
    const Lock lock(arenas_->mutex);
    constexpr size_t kChunk = CowArray<PageRef>::kChunk;
    const size_t next = std::max(size, (pages_.size() - 1) / kChunk * kChunk);
    int64_t gone = 0;
    for (size_t i = next; i < pages_.size(); ++i) gone += pages_[i] ? 1 : 0;
    pages_.Resize(next);
    Hold(-gone);
  }
  const Lock lock(arenas_->mutex);
  kv_.Cut(blocks);
}

}  // namespace annulus
