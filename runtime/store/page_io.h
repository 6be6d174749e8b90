// How packed rows in host memory (append_cut.h) get into pages and out of them, and how pages are
// sealed and looked at, wherever they lie. Thread-compatible.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "attention/memory_space.h"
#include "runtime/store/page_table.h"
#include "sharding/layout.h"

namespace annulus {

// Writes `rank`'s rows of `tokens`, as PackAppend made them, to its pages, for which the table has
// room, and seals those that are full then. On an error some are written and none of them counts.
absl::Status StoreRows(MemorySpace& space, const ContextSpec& spec, const Layout& layout, int rank,
                       TokenRange tokens, absl::Span<const std::byte> packed, PageTable& pages);

// The other way round, to `to`, which has AppendBytes; zeros for pages that are not held.
absl::Status LoadRows(MemorySpace& space, const ContextSpec& spec, const Layout& layout, int rank,
                      TokenRange tokens, const PageTable& pages, std::byte* to);

// The first of these sealed pages that has changed since it was sealed; pages.size() if none has.
absl::StatusOr<size_t> FindChanged(MemorySpace& space, size_t page_bytes,
                                   const std::vector<const Page*>& pages);

}  // namespace annulus
