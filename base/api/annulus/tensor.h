// Tensors in layout NHD: [tokens, heads, dim], row-major unless strides say otherwise.
// TensorView borrows, Tensor owns. Values without a lock: share views read-only between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "annulus/buffer.h"
#include "annulus/dtype.h"

namespace annulus {

// A read-only view. Strides count elements; the last dimension is always contiguous.
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  static TensorView Contiguous(const void* data, DType dtype, int64_t tokens, int64_t heads,
                               int64_t dim) {
    // Wraps for a shape that no memory can have: callers' shapes are checked after they are named.
    const auto token_stride =
        static_cast<int64_t>(static_cast<uint64_t>(heads) * static_cast<uint64_t>(dim));
    return {static_cast<const std::byte*>(data), dtype, tokens, heads, dim, token_stride, dim};
  }

  const std::byte* Row(int64_t token, int64_t head) const {
    return data + static_cast<size_t>(token * token_stride + head * head_stride) * SizeOf(dtype);
  }
  TensorView Tokens(int64_t first, int64_t count) const {
    TensorView view = *this;
    view.data = Row(first, 0);
    view.tokens = count;
    return view;
  }
  TensorView Heads(int64_t first, int64_t count) const {
    TensorView view = *this;
    view.data = Row(0, first);
    view.heads = count;
    return view;
  }
  int64_t size() const { return tokens * heads * dim; }
};

// An owned, contiguous tensor, 64-byte aligned, zeroed. Move-only: a copy must be asked for by
// name.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;
  Tensor(DType dtype, int64_t tokens, int64_t heads, int64_t dim)
      : Tensor(Buffer(static_cast<size_t>(tokens * heads * dim) * SizeOf(dtype)), dtype, tokens,
               heads, dim) {
    if (!bytes_.empty()) std::memset(bytes_.data(), 0, bytes_.size());
  }
  // Takes `bytes` over, which hold its values or will; as many as it needs, 64-byte aligned.
  Tensor(Buffer bytes, DType dtype, int64_t tokens, int64_t heads, int64_t dim)
      : bytes_(std::move(bytes)), dtype_(dtype), tokens_(tokens), heads_(heads), dim_(dim) {}

  TensorView view() const {
    return TensorView::Contiguous(bytes_.data(), dtype_, tokens_, heads_, dim_);
  }
  operator TensorView() const { return view(); }  // NOLINT: a Tensor is read as its view

  std::byte* data() { return bytes_.data(); }
  const std::byte* data() const { return bytes_.data(); }
  float* f32() { return reinterpret_cast<float*>(bytes_.data()); }
  const float* f32() const { return reinterpret_cast<const float*>(bytes_.data()); }
  size_t size_bytes() const { return bytes_.size(); }
  DType dtype() const { return dtype_; }
  int64_t tokens() const { return tokens_; }
  int64_t heads() const { return heads_; }
  int64_t dim() const { return dim_; }

 private:
  Buffer bytes_;
  DType dtype_ = DType::kF32;
  int64_t tokens_ = 0;
  int64_t heads_ = 0;
  int64_t dim_ = 0;
};

}  // namespace annulus
