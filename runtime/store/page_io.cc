#include "runtime/store/page_io.h"

#include <algorithm>

#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/crc32c.h"

namespace annulus {
namespace {

// Pages of a GPU that are brought to the host at once.
constexpr size_t kBatchBytes = size_t{64} << 20;

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

}  // namespace

absl::Status StoreRows(MemorySpace& space, const ContextSpec& spec, const Layout& layout, int rank,
                       TokenRange tokens, absl::Span<const std::byte> packed, PageTable& pages) {
  const auto page_bytes = static_cast<size_t>(PageBytes(spec));
  const PageRows shape(spec);
  const HeadRanges& heads = pages.heads();
  Buffer staged;  // packed, where the pages lie
  if (!IsHost(space)) {
    ANNULUS_ASSIGN_OR_RETURN(staged, space.Allocate(packed.size()));
    ANNULUS_RETURN_IF_ERROR(space.CopyIn(packed.data(), staged.data(), packed.size()));
  }
  auto* from = IsHost(space) ? const_cast<std::byte*>(packed.data()) : staged.data();
  const std::byte* on_host = packed.data();
  std::vector<RowsCopy> copies;
  std::vector<Page*> filled;  // in parts: their bytes are not all here
  absl::Status status;
  const auto store = [&](int64_t block, TokenRange rows, int head) -> absl::Status {
    ANNULUS_ASSIGN_OR_RETURN(Page * page, pages.Write(head, block));
    const int64_t first = rows.begin - block * kBlockTokens;
    shape.Add(page->data, first, rows.size(), from, /*to_page=*/true, &copies);
    if (IsHost(space)) {  // at once, so that the CRC finds the page in the cache
      ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
      copies.clear();
    }
    if (rows.size() == kBlockTokens) {
      Seal(*page, on_host, page_bytes);
      pages.Summarise(page);
    } else if (first + rows.size() == kBlockTokens) {
      filled.push_back(page);
    }
    from += shape.Bytes(rows.size());
    on_host += shape.Bytes(rows.size());
    return absl::OkStatus();
  };
  ForEachOwnedBlock(layout, rank, tokens, [&](int64_t block, TokenRange rows) {
    ForEachHead(heads, [&](int head) {
      if (status.ok()) status = store(block, rows, head);
    });
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (!copies.empty()) ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
  std::vector<std::byte> whole(IsHost(space) || filled.empty() ? 0 : page_bytes);
  for (Page* page : filled) {
    if (IsHost(space)) {
      Seal(*page, page->data, page_bytes);
      pages.Summarise(page);
      continue;
    }
    ANNULUS_RETURN_IF_ERROR(space.CopyOut(page->data, whole.data(), page_bytes));
    Seal(*page, whole.data(), page_bytes);
  }
  return absl::OkStatus();
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
  if (IsHost(space)) {
    const auto changed = std::find_if(pages.begin(), pages.end(), [&](const Page* page) {
      return Crc32c(page->data, page_bytes) != page->crc;
    });
    return static_cast<size_t>(changed - pages.begin());
  }
  const size_t batch = std::max<size_t>(1, kBatchBytes / page_bytes);
  for (size_t first = 0; first < pages.size(); first += batch) {
    const size_t count = std::min(batch, pages.size() - first);
    ANNULUS_ASSIGN_OR_RETURN(Buffer staged, space.Allocate(count * page_bytes));
    Buffer host(count * page_bytes);
    std::vector<RowsCopy> copies;
    for (size_t i = 0; i < count; ++i) {
      copies.push_back({pages[first + i]->data, staged.data() + i * page_bytes, 1, page_bytes,
                        page_bytes, page_bytes});
    }
    ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
    ANNULUS_RETURN_IF_ERROR(space.CopyOut(staged.data(), host.data(), host.size()));
    for (size_t i = 0; i < count; ++i) {
      if (Crc32c(host.data() + i * page_bytes, page_bytes) != pages[first + i]->crc) {
        return first + i;
      }
    }
  }
  return pages.size();
}

}  // namespace annulus
