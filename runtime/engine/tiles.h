// Tiles: what one rank holds of queries and of partials while a plan runs. A tile is a set of query
// rows × a range of query heads with its queries and its accumulator. Queries and partials that
// arrive are spread over the tiles; partials that leave are gathered from them and forgotten here,
// so that no key is merged twice.
// All of it lies in one memory space. Used by one thread.
#pragma once

#include <list>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/tensor.h"
#include "attention/backend.h"
#include "attention/memory_space.h"
#include "runtime/engine/rows.h"
#include "sharding/plan.h"

namespace annulus {

struct Tile {
  Rows rows;
  HeadRange heads;
  Buffer q_owned;  // [rows, heads, head_dim] of the problem's dtype; empty where q is borrowed
  TensorView q;    // data is null for a tile that only collects partials
  PartialBuffer partial;
};

// into ⊕= from for the rows and heads that both have. With `forget` those of `from` become the
// identity.
absl::Status MergeRows(MemorySpace& space, const Rows& into_rows, HeadRange into_heads,
                       PartialView into, const Rows& from_rows, HeadRange from_heads,
                       PartialView from, bool forget = false);

class Tiles {
 public:
  Tiles(const Problem& problem, MemorySpace& space) : problem_(problem), space_(space) {}

  // The tile of exactly these rows and heads, made on first use with room for queries.
  absl::StatusOr<Tile*> ForCompute(const Rows& rows, HeadRange heads);
  // A tile whose queries are borrowed: the rows this rank owned from the start.
  absl::Status Borrow(const Rows& rows, HeadRange heads, const TensorView& q);

  // Copies queries [rows, heads, head_dim] into every compute tile that wants some of them.
  absl::Status SpreadQueries(const Rows& rows, HeadRange heads, const TensorView& q);

  // Merges a partial that arrived into the tile that covers it (the borrowed one if it does, else
  // one of the same rows and heads, made if need be).
  absl::Status MergeArrived(const Rows& rows, HeadRange heads, PartialView partial);

  // Merges all that is known of these rows and heads into `into` and forgets it here.
  absl::Status Gather(const Rows& rows, HeadRange heads, PartialView into);

  // All that is known of the borrowed tile's rows; the end of the run.
  absl::StatusOr<PartialBuffer> TakeHome() &&;

 private:
  absl::StatusOr<Tile*> Make(const Rows& rows, HeadRange heads);

  const Problem& problem_;
  MemorySpace& space_;
  std::list<Tile> tiles_;  // stable addresses; a handful
  Tile* home_ = nullptr;
};

}  // namespace annulus
