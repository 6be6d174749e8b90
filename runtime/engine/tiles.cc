#include "runtime/engine/tiles.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"

namespace annulus {
namespace {

HeadRange Common(HeadRange a, HeadRange b) {
  const int first = std::max(a.first, b.first);
  return {first, std::max(0, std::min(a.end(), b.end()) - first)};
}

bool Covers(HeadRange outer, HeadRange inner) {
  return outer.first <= inner.first && inner.end() <= outer.end();
}

// Those rows and, of each, what begins at this head.
PartialView From(PartialView view, int64_t row, int64_t rows, int64_t head) {
  const int64_t at = row * view.heads + head;
  return {view.out + at * view.v_head_dim, view.lse + at, rows, view.heads, view.v_head_dim};
}

// Calls fn(row in a, row in b, count) for the rows that both have, a block at a time.
template <typename Fn>
void ForCommonRows(const Rows& a, const Rows& b, Fn fn) {
  const Rows& few = a.blocks() <= b.blocks() ? a : b;
  const Rows& many = &few == &a ? b : a;
  for (int64_t i = 0; i < few.blocks(); ++i) {
    const std::optional<int64_t> j = many.Find(few.block(i));
    if (!j) continue;
    const int64_t in_few = few.offset(i), in_many = many.offset(*j);
    fn(&few == &a ? in_few : in_many, &few == &a ? in_many : in_few, few.rows(i));
  }
}

}  // namespace

absl::Status MergeRows(MemorySpace& space, const Rows& into_rows, HeadRange into_heads,
                       PartialView into, const Rows& from_rows, HeadRange from_heads,
                       PartialView from, bool forget) {
  const HeadRange heads = Common(into_heads, from_heads);
  if (heads.count == 0) return absl::OkStatus();
  std::vector<RowsMerge> merges;
  ForCommonRows(into_rows, from_rows, [&](int64_t to, int64_t at, int64_t count) {
    const RowsMerge merge = {From(into, to, count, heads.first - into_heads.first),
                             From(from, at, count, heads.first - from_heads.first), heads.count,
                             forget};
    // Rows that follow each other in both are one merge.
    if (!merges.empty()) {
      RowsMerge& last = merges.back();
      if (last.into.lse + last.into.rows * into.heads == merge.into.lse &&
          last.from.lse + last.from.rows * from.heads == merge.from.lse) {
        last.into.rows += count;
        last.from.rows += count;
        return;
      }
    }
    merges.push_back(merge);
  });
  return merges.empty() ? absl::OkStatus() : space.Merge(merges);
}

absl::StatusOr<Tile*> Tiles::Make(const Rows& rows, HeadRange heads) {
  Tile& tile = tiles_.emplace_back();
  tile.rows = rows;
  tile.heads = heads;
  ANNULUS_ASSIGN_OR_RETURN(tile.partial,
                           MakePartial(space_, rows.count(), heads.count, problem_.v_head_dim));
  return &tile;
}

absl::StatusOr<Tile*> Tiles::ForCompute(const Rows& rows, HeadRange heads) {
  for (Tile& tile : tiles_) {
    if (tile.q.data != nullptr && tile.heads == heads && tile.rows == rows) return &tile;
  }
  ANNULUS_ASSIGN_OR_RETURN(Tile * tile, Make(rows, heads));
  tile->q =
      TensorView::Contiguous(nullptr, problem_.dtype, rows.count(), heads.count, problem_.head_dim);
  ANNULUS_ASSIGN_OR_RETURN(
      tile->q_owned,
      space_.AllocateZeroed(static_cast<size_t>(tile->q.size()) * SizeOf(problem_.dtype)));
  tile->q.data = tile->q_owned.data();
  if (home_ != nullptr) {
    ANNULUS_RETURN_IF_ERROR(SpreadQueries(home_->rows, home_->heads, home_->q));
  }
  return tile;
}

absl::Status Tiles::Borrow(const Rows& rows, HeadRange heads, const TensorView& q) {
  ANNULUS_ASSIGN_OR_RETURN(home_, Make(rows, heads));
  home_->q = q;
  return absl::OkStatus();
}

absl::Status Tiles::SpreadQueries(const Rows& rows, HeadRange heads, const TensorView& q) {
  const size_t head_bytes = static_cast<size_t>(problem_.head_dim) * SizeOf(problem_.dtype);
  const auto row_bytes = static_cast<size_t>(q.token_stride) * SizeOf(problem_.dtype);
  std::vector<RowsCopy> copies;
  for (Tile& tile : tiles_) {
    const HeadRange common = Common(tile.heads, heads);
    if (tile.q_owned.empty() || common.count == 0) continue;
    const size_t tile_row_bytes = static_cast<size_t>(tile.heads.count) * head_bytes;
    const size_t tile_head_at = static_cast<size_t>(common.first - tile.heads.first) * head_bytes;
    ForCommonRows(tile.rows, rows, [&](int64_t to, int64_t at, int64_t count) {
      copies.push_back(
          {.from = q.Row(at, common.first - heads.first),
           .to = tile.q_owned.data() + static_cast<size_t>(to) * tile_row_bytes + tile_head_at,
           .rows = count,
           .row_bytes = static_cast<size_t>(common.count) * head_bytes,
           .from_stride_bytes = row_bytes,
           .to_stride_bytes = tile_row_bytes});
    });
  }
  return copies.empty() ? absl::OkStatus() : space_.Copy(copies);
}

absl::Status Tiles::MergeArrived(const Rows& rows, HeadRange heads, PartialView partial) {
  Tile* target = nullptr;
  if (home_ != nullptr && Covers(home_->heads, heads) && home_->rows.Covers(rows)) target = home_;
  for (Tile& tile : tiles_) {
    if (target == nullptr && tile.heads == heads && tile.rows == rows) target = &tile;
  }
  if (target == nullptr) {
    ANNULUS_ASSIGN_OR_RETURN(target, Make(rows, heads));
  }
  return MergeRows(space_, target->rows, target->heads, target->partial.view, rows, heads, partial);
}

absl::Status Tiles::Gather(const Rows& rows, HeadRange heads, PartialView into) {
  for (Tile& tile : tiles_) {
    ANNULUS_RETURN_IF_ERROR(MergeRows(space_, rows, heads, into, tile.rows, tile.heads,
                                      tile.partial.view, /*forget=*/true));
  }
  return absl::OkStatus();
}

absl::StatusOr<PartialBuffer> Tiles::TakeHome() && {
  for (Tile& tile : tiles_) {
    if (&tile == home_) continue;
    ANNULUS_RETURN_IF_ERROR(MergeRows(space_, home_->rows, home_->heads, home_->partial.view,
                                      tile.rows, tile.heads, tile.partial.view));
  }
  return std::move(home_->partial);
}

}  // namespace annulus
