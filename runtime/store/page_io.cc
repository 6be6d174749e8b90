#include "runtime/store/page_io.h"

#include <algorithm>
#include <mutex>

#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/crc32c.h"

namespace annulus {
namespace {

// Pages of a GPU that are brought to the host at once.
constexpr size_t kBatchBytes = size_t{64} << 20;
// Pages of the host that a thread stores in one go: fewer bytes are not worth a second thread.
constexpr size_t kItemBytes = size_t{512} << 10;

bool IsHost(const MemorySpace& space) {
  return space.kind() == MemoryKind::kHost;
}

void Seal(Page& page, const std::byte* bytes, size_t page_bytes) {
  page.crc = Crc32c(bytes, page_bytes);
  page.sealed = true;
}

// The rows [first, first + count) of a page: its K rows, then its V rows, between the page and
// bytes without gaps.
class PageRows {
 public:
  explicit PageRows(const ContextSpec& spec)
      : k_row_(static_cast<size_t>(spec.head_dim) * SizeOf(spec.dtype)),
        v_row_(static_cast<size_t>(TokenBytes(spec)) - k_row_) {}

  size_t Bytes(int64_t count) const { return static_cast<size_t>(count) * (k_row_ + v_row_); }

  // Adds the two copies; `to_page` says which way.
  void Add(std::byte* page, int64_t first, int64_t count, std::byte* packed, bool to_page,
           std::vector<RowsCopy>* copies) const {
    const auto rows = static_cast<size_t>(count);
    std::byte* k = page + static_cast<size_t>(first) * k_row_;
    std::byte* v = page + kBlockTokens * k_row_ + static_cast<size_t>(first) * v_row_;
    if (count == kBlockTokens)
      return AddOne(page, packed, rows * (k_row_ + v_row_), to_page, copies);
    AddOne(k, packed, rows * k_row_, to_page, copies);
    if (v_row_ != 0) AddOne(v, packed + rows * k_row_, rows * v_row_, to_page, copies);
  }

 private:
  static void AddOne(std::byte* page, std::byte* packed, size_t bytes, bool to_page,
                     std::vector<RowsCopy>* copies) {
    copies->push_back(to_page ? RowsCopy{packed, page, 1, bytes, bytes, bytes}
                              : RowsCopy{page, packed, 1, bytes, bytes, bytes});
  }

  const size_t k_row_;
  const size_t v_row_;
};

// Rows that go to a page.
struct StoredRows {
  Page* page;
  int64_t first;
  int64_t count;
  std::byte* from;

  bool whole() const { return count == kBlockTokens; }
  bool full() const { return first + count == kBlockTokens; }
};

// Each page at once, so that its CRC finds it in the cache.
absl::Status StoreInHost(MemorySpace& space, ThreadPool* pool, const PageRows& shape,
                         size_t page_bytes, const std::vector<StoredRows>& parts,
                         const PageTable& pages) {
  std::mutex mutex;
  absl::Status failure;  // the first one
  const auto store = [&](size_t begin, size_t end) {
    std::vector<RowsCopy> copies;
    for (size_t i = begin; i < end; ++i) {
      const StoredRows& part = parts[i];
      copies.clear();
      shape.Add(part.page->data, part.first, part.count, part.from, /*to_page=*/true, &copies);
      if (const absl::Status copied = space.Copy(copies); !copied.ok()) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure.Update(copied);
        return;
      }
      if (!part.full()) continue;
      Seal(*part.page, part.page->data, page_bytes);
      pages.Summarise(part.page);
    }
  };
  const size_t at_once = std::max<size_t>(1, kItemBytes / page_bytes);  // pages
  const size_t items = (parts.size() + at_once - 1) / at_once;
  if (pool == nullptr || items < 2) {
    store(0, parts.size());
    return failure;
  }
  // Appends wait for no kernel.
  pool->ParallelFor(static_cast<int64_t>(items),
                    [&](int64_t i) {
                      const size_t begin = static_cast<size_t>(i) * at_once;
                      store(begin, std::min(begin + at_once, parts.size()));
                    },
                    {.urgent = true});
  return failure;
}

using Bytes = absl::Span<const std::byte>;

// Calls look(i, bytes) for the pages in their order, with their bytes in host memory, until it says
// false. Those of a GPU are brought there together.
template <typename Look>
absl::Status LookAt(MemorySpace& space, const std::vector<Bytes>& pages, Look look) {
  size_t next = 0;
  while (IsHost(space) && next < pages.size() && look(next, pages[next].data())) ++next;
  if (IsHost(space)) return absl::OkStatus();
  while (next < pages.size()) {
    const size_t first = next;
    size_t bytes = 0;
    do {
      bytes += pages[next++].size();
    } while (next < pages.size() && bytes + pages[next].size() <= kBatchBytes);
    ANNULUS_ASSIGN_OR_RETURN(Buffer staged, space.Allocate(bytes));
    Buffer host(bytes);
    std::vector<RowsCopy> copies;
    size_t at = 0;
    for (size_t i = first; i < next; at += pages[i++].size()) {
      const size_t own = pages[i].size();
      copies.push_back({pages[i].data(), staged.data() + at, 1, own, own, own});
    }
    ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
    ANNULUS_RETURN_IF_ERROR(space.CopyOut(staged.data(), host.data(), bytes));
    at = 0;
    for (size_t i = first; i < next; at += pages[i++].size()) {
      if (!look(i, host.data() + at)) return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StoreRows(MemorySpace& space, ThreadPool* pool, const ContextSpec& spec,
                       const Layout& layout, int rank, TokenRange tokens,
                       absl::Span<const std::byte> packed, PageTable& pages, RowsUnderWay* rows) {
  const auto page_bytes = static_cast<size_t>(PageBytes(spec));
  const PageRows shape(spec);
  const HeadRanges& heads = pages.heads();
  std::vector<StoredRows> parts;
  auto* from = const_cast<std::byte*>(packed.data());
  absl::Status status;
  ForEachOwnedBlock(layout, rank, tokens, [&](int64_t block, TokenRange own) {
    ForEachHead(heads, [&](int head) {
      if (!status.ok()) return;
      const absl::StatusOr<Page*> page = pages.Write(head, block);
      status = page.status();
      if (!status.ok()) return;
      parts.push_back({*page, own.begin - block * kBlockTokens, own.size(), from});
      from += shape.Bytes(own.size());
    });
  });
  if (!status.ok()) return status;
  if (IsHost(space)) return StoreInHost(space, pool, shape, page_bytes, parts, pages);
  for (const StoredRows& part : parts) {
    shape.Add(part.page->data, part.first, part.count, part.from, /*to_page=*/true, &rows->copies);
    if (part.whole()) {
      Seal(*part.page, part.from, page_bytes);
      pages.Summarise(part.page);
    } else if (part.full()) {
      rows->filled.push_back({part.page, page_bytes});  // its bytes are not all here
    }
  }
  return absl::OkStatus();
}

absl::Status FinishRows(MemorySpace& space, const RowsUnderWay& rows) {
  if (!rows.copies.empty()) ANNULUS_RETURN_IF_ERROR(space.CopyRowsIn(rows.copies));
  std::vector<Bytes> pages;
  for (const auto& [page, page_bytes] : rows.filled) pages.emplace_back(page->data, page_bytes);
  return LookAt(space, pages, [&](size_t i, const std::byte* bytes) {
    Seal(*rows.filled[i].page, bytes, pages[i].size());
    return true;
  });
}

absl::Status LoadRows(MemorySpace& space, const ContextSpec& spec, const Layout& layout, int rank,
                      TokenRange tokens, const PageTable& pages, std::byte* to) {
  const PageRows shape(spec);
  const HeadRanges& heads = pages.heads();
  const auto bytes = static_cast<size_t>(AppendBytes(spec, layout, rank, tokens));
  Buffer staged;
  if (!IsHost(space)) {
    ANNULUS_ASSIGN_OR_RETURN(staged, space.Allocate(bytes));
  }
  std::byte* at = IsHost(space) ? to : staged.data();
  std::vector<RowsCopy> copies;
  absl::Status status;
  ForEachOwnedBlock(layout, rank, tokens, [&](int64_t block, TokenRange rows) {
    ForEachHead(heads, [&](int head) {
      const Page* page = pages.Find(head, block);
      if (page != nullptr) {
        shape.Add(page->data, rows.begin - block * kBlockTokens, rows.size(), at,
                  /*to_page=*/false, &copies);
      } else {
        status.Update(space.Zero(at, shape.Bytes(rows.size())));
      }
      at += shape.Bytes(rows.size());
    });
  });
  ANNULUS_RETURN_IF_ERROR(status);
  ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
  return IsHost(space) ? absl::OkStatus() : space.CopyOut(staged.data(), to, bytes);
}

absl::StatusOr<size_t> FindChanged(MemorySpace& space, size_t page_bytes,
                                   const std::vector<const Page*>& pages) {
  std::vector<Bytes> bytes_of;
  bytes_of.reserve(pages.size());
  for (const Page* page : pages) bytes_of.emplace_back(page->data, page_bytes);
  size_t changed = pages.size();
  ANNULUS_RETURN_IF_ERROR(LookAt(space, bytes_of, [&](size_t i, const std::byte* bytes) {
    if (Crc32c(bytes, page_bytes) == pages[i]->crc) return true;
    changed = i;
    return false;
  }));
  return changed;
}

}  // namespace annulus
