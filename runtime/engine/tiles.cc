#include "runtime/engine/tiles.h"

#include <algorithm>
#include <cstring>

namespace annulus {
namespace {

HeadRange Common(HeadRange a, HeadRange b) {
  const int first = std::max(a.first, b.first);
  return {first, std::max(0, std::min(a.end(), b.end()) - first)};
}

bool Covers(HeadRange outer, HeadRange inner) {
  return outer.first <= inner.first && inner.end() <= outer.end();
}

PartialView OneRow(PartialView view, int64_t row, int64_t head, int64_t heads) {
  const int64_t at = row * view.heads + head;
  return {view.out + at * view.v_head_dim, view.lse + at, 1, heads, view.v_head_dim};
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

void MergeRows(const Rows& into_rows, HeadRange into_heads, PartialView into, const Rows& from_rows,
               HeadRange from_heads, PartialView from, bool forget) {
  const HeadRange heads = Common(into_heads, from_heads);
  if (heads.count == 0) return;
  const bool whole_rows = into_heads == from_heads;
  ForCommonRows(into_rows, from_rows, [&](int64_t to, int64_t at, int64_t count) {
    if (whole_rows) {
      Merge(into.Rows(to, count), from.Rows(at, count));
      if (forget) SetIdentity(from.Rows(at, count));
      return;
    }
    for (int64_t r = 0; r < count; ++r) {
      PartialView source = OneRow(from, at + r, heads.first - from_heads.first, heads.count);
      Merge(OneRow(into, to + r, heads.first - into_heads.first, heads.count), source);
      if (forget) SetIdentity(source);
    }
  });
}

Tile& Tiles::Make(const Rows& rows, HeadRange heads) {
  Tile& tile = tiles_.emplace_back();
  tile.rows = rows;
  tile.heads = heads;
  tile.partial = Partial(rows.count(), heads.count, problem_.v_head_dim);
  return tile;
}

Tile& Tiles::ForCompute(const Rows& rows, HeadRange heads) {
  for (Tile& tile : tiles_) {
    if (tile.q.data != nullptr && tile.heads == heads && tile.rows == rows) return tile;
  }
  Tile& tile = Make(rows, heads);
  tile.q_owned = Tensor(problem_.dtype, rows.count(), heads.count, problem_.head_dim);
  tile.q = tile.q_owned.view();
  if (home_ != nullptr) SpreadQueries(home_->rows, home_->heads, home_->q);
  return tile;
}

Tile& Tiles::Borrow(const Rows& rows, HeadRange heads, const TensorView& q) {
  home_ = &Make(rows, heads);
  home_->q = q;
  return *home_;
}

void Tiles::SpreadQueries(const Rows& rows, HeadRange heads, const TensorView& q) {
  const size_t element_bytes = SizeOf(problem_.dtype);
  for (Tile& tile : tiles_) {
    const HeadRange common = Common(tile.heads, heads);
    if (tile.q_owned.data() == nullptr || common.count == 0) continue;
    ForCommonRows(tile.rows, rows, [&](int64_t to, int64_t at, int64_t count) {
      for (int64_t r = 0; r < count; ++r) {
        for (int h = common.first; h < common.end(); ++h) {
          const int64_t row = (to + r) * tile.heads.count + (h - tile.heads.first);
          std::memcpy(
              tile.q_owned.data() + static_cast<size_t>(row * problem_.head_dim) * element_bytes,
              q.Row(at + r, h - heads.first),
              static_cast<size_t>(problem_.head_dim) * element_bytes);
        }
      }
    });
  }
}

void Tiles::MergeArrived(const Rows& rows, HeadRange heads, PartialView partial) {
  Tile* target = nullptr;
  if (home_ != nullptr && Covers(home_->heads, heads) && home_->rows.Covers(rows)) target = home_;
  for (Tile& tile : tiles_) {
    if (target == nullptr && tile.heads == heads && tile.rows == rows) target = &tile;
  }
  if (target == nullptr) target = &Make(rows, heads);
  MergeRows(target->rows, target->heads, target->partial.view(), rows, heads, partial);
}

void Tiles::Gather(const Rows& rows, HeadRange heads, PartialView into) {
  for (Tile& tile : tiles_) {
    MergeRows(rows, heads, into, tile.rows, tile.heads, tile.partial.view(), true);
  }
}

Partial Tiles::TakeHome() && {
  for (Tile& tile : tiles_) {
    if (&tile == home_) continue;
    MergeRows(home_->rows, home_->heads, home_->partial.view(), tile.rows, tile.heads,
              tile.partial.view());
  }
  return std::move(home_->partial);
}

}  // namespace annulus
