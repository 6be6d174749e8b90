// How packed rows in host memory (append_cut.h) get into pages and out of them, and how pages are
// sealed and looked at, wherever they lie. What goes to a device or comes from it goes together,
// since each copy of its own takes as long as many. Thread-compatible.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "attention/memory_space.h"
#include "base/thread_pool.h"
#include "runtime/store/page_table.h"
#include "sharding/layout.h"

namespace annulus {

// What a batch of appends still has to bring to a device: rows in host memory, and pages that are
// full with them and not sealed yet.
struct RowsUnderWay {
  struct Filled {
    Page* page = nullptr;
    size_t page_bytes = 0;
  };
  std::vector<RowsCopy> copies;
  std::vector<Filled> filled;
};

// Writes `rank`'s rows of `tokens`, as PackAppend made them, to its pages, for which the table has
// room, and seals those that are full then; the threads of `pool` share the work (null: this one
// alone). Where they lie on a device it only adds to `rows` what FinishRows does while `packed`
// lives. On an error some are written and none of them counts.
absl::Status StoreRows(MemorySpace& space, ThreadPool* pool, const ContextSpec& spec,
                       const Layout& layout, int rank, TokenRange tokens,
                       absl::Span<const std::byte> packed, PageTable& pages, RowsUnderWay* rows);

// No two of the rows have a place in common.
absl::Status FinishRows(MemorySpace& space, const RowsUnderWay& rows);

// The other way round, to `to`, which has AppendBytes; zeros for pages that are not held.
absl::Status LoadRows(MemorySpace& space, const ContextSpec& spec, const Layout& layout, int rank,
                      TokenRange tokens, const PageTable& pages, std::byte* to);

// The first of these sealed pages that has changed since it was sealed; pages.size() if none has.
absl::StatusOr<size_t> FindChanged(MemorySpace& space, size_t page_bytes,
                                   const std::vector<const Page*>& pages);

}  // namespace annulus
