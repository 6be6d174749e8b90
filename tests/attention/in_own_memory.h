// A backend that first moves what it is given to where its inner backend computes, and the results
// back: the agreement suite, which has everything in host memory, so reaches kernels that read
// pages in a GPU's. One thread.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "attention/backend.h"
#include "base/status.h"

namespace annulus {

class InOwnMemory final : public Backend {
 public:
  explicit InOwnMemory(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    std::vector<Moved> moved;
    std::vector<AttendArgs> own(batch.begin(), batch.end());
    moved.reserve(batch.size());
    for (AttendArgs& args : own) {
      moved.emplace_back();
      ANNULUS_RETURN_IF_ERROR(Move(&args, &moved.back()));
    }
    ANNULUS_RETURN_IF_ERROR(inner_->AttendBatch(own));
    for (size_t i = 0; i < batch.size(); ++i) {
      ANNULUS_ASSIGN_OR_RETURN(Partial out, ToHost(inner_->memory(), moved[i].into));
      SetIdentity(batch[i].into);
      Merge(batch[i].into, out.view());
    }
    return absl::OkStatus();
  }

 private:
  struct MovedRows {
    Buffer bytes;
    int32_t stride = 0;
  };
  struct Moved {
    std::map<const std::byte*, MovedRows> rows;  // by where they were: blocks may share one page
    KvTable kv;
    Buffer q;
    PartialBuffer into;
  };

  // Pages of one table have strides of their own, and NaN between rows.
  absl::StatusOr<const MovedRows*> MoveRows(const std::byte* rows, int64_t count, int64_t stride,
                                            int64_t dim, DType dtype, Moved* moved) {
    const auto gap = static_cast<int32_t>(moved->rows.size() / 2 % 3 * 8);
    MovedRows& known = moved->rows[rows];
    if (!known.bytes.empty()) return &known;
    known.stride = static_cast<int32_t>(dim) + gap;
    const size_t row_bytes = static_cast<size_t>(dim) * SizeOf(dtype);
    const size_t to_bytes = static_cast<size_t>(known.stride) * SizeOf(dtype);
    Buffer host(static_cast<size_t>(count) * to_bytes);
    std::memset(host.data(), 0xff, host.size());
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(host.data() + static_cast<size_t>(r) * to_bytes,
                  rows + static_cast<size_t>(r * stride) * SizeOf(dtype), row_bytes);
    }
    ANNULUS_ASSIGN_OR_RETURN(known.bytes, MovedTo(inner_->memory(), std::move(host)));
    return &known;
  }

  absl::Status Move(AttendArgs* args, Moved* moved) {
    MemorySpace& space = inner_->memory();
    const KvTable& kv = *args->kv;
    moved->kv = KvTable(kv.dtype(), kv.kv_head_first(), kv.kv_heads(), kv.head_dim(),
                        kv.v_head_dim(), kv.blocks());
    moved->kv.set_memory(space.kind());
    for (int head = kv.kv_head_first(); head < kv.kv_head_first() + kv.kv_heads(); ++head) {
      for (int64_t block = 0; block < kv.blocks(); ++block) {
        const KvPage& page = kv.page(head, block);
        const int64_t rows = std::min(kBlockTokens, args->kv_tokens - block * kBlockTokens);
        if (page.k == nullptr || page.v == nullptr || rows <= 0) continue;
        // V may be K's first dims, and then has K's rows.
        ANNULUS_ASSIGN_OR_RETURN(const MovedRows* k, MoveRows(page.k, rows, page.k_row_stride,
                                                              kv.head_dim(), kv.dtype(), moved));
        ANNULUS_ASSIGN_OR_RETURN(const MovedRows* v, MoveRows(page.v, rows, page.v_row_stride,
                                                              kv.v_head_dim(), kv.dtype(), moved));
        moved->kv.Set(head, block, {k->bytes.data(), v->bytes.data(), k->stride, v->stride});
      }
    }
    Buffer q(static_cast<size_t>(args->q.size()) * SizeOf(args->q.dtype));
    const size_t q_row = static_cast<size_t>(args->q.dim) * SizeOf(args->q.dtype);
    for (int64_t row = 0; row < args->q.tokens * args->q.heads; ++row) {
      std::memcpy(q.data() + static_cast<size_t>(row) * q_row,
                  args->q.Row(row / args->q.heads, row % args->q.heads), q_row);
    }
    ANNULUS_ASSIGN_OR_RETURN(moved->q, MovedTo(space, std::move(q)));
    const PartialView into = args->into;
    Buffer partial(PartialBytes(into.rows, into.heads, into.v_head_dim));
    const PartialView view = PartialIn(partial.data(), into.rows, into.heads, into.v_head_dim);
    SetIdentity(view);
    Merge(view, into);
    ANNULUS_ASSIGN_OR_RETURN(moved->into.bytes, MovedTo(space, std::move(partial)));
    moved->into.view = PartialIn(moved->into.bytes.data(), into.rows, into.heads, into.v_head_dim);
    args->kv = &moved->kv;
    args->q = TensorView::Contiguous(moved->q.data(), args->q.dtype, args->q.tokens, args->q.heads,
                                     args->q.dim);
    args->into = moved->into.view;
    args->memory = space.kind();
    return absl::OkStatus();
  }

  const std::unique_ptr<Backend> inner_;
};

}  // namespace annulus
