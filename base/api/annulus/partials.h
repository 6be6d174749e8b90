// Attention put together by the caller: answers over some of the keys, of the service or of the
// caller's own kernels, and what ends their rows. `out` is f32 [n, heads, v_head_dim], normalised
// over the keys it saw, `lse` f32 [n, heads, 1], the natural log of the sum of exponentials of
// their scores, −∞ where a row saw none. Cascade: a prefix that many sequences share is attended
// where it lies, a sequence's own tail by the caller, and the two are merged (examples/cascade.cc).
// All return INVALID_ARGUMENT that names a tensor whose shape or dtype does not fit, and change
// nothing then. Thread-safe on tensors that no one else writes.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"

namespace annulus {

// into ⊕= (out, lse): afterwards the answer over the keys of both, which must have none in common.
// In any order, as often as there are parts. INVALID_ARGUMENT also names the first row and head
// whose merged out or lse is not finite, and then both tensors mean nothing.
absl::Status Merge(const TensorView& out, const TensorView& lse, Tensor* into_out,
                   Tensor* into_lse);

// Lets each head's softmax share its weight with one more score, its sink (gpt-oss), which brings
// no value: out := out · σ(lse − sink), lse := log(exp(lse) + exp(sink)). Once for each row, after
// the last merge: a sink counts like a key. −∞ leaves a head as it is; NaN and +∞ are refused.
absl::Status WithSinks(absl::Span<const float> sinks, Tensor* out, Tensor* lse);

// Gated attention: out := out · σ(gate), `gate` [n, heads, v_head_dim], or [n, heads, 1] for one
// gate a head, of any dtype. Once for each row, after the last merge and the sinks.
absl::Status Gate(const TensorView& gate, Tensor* out);

// Attention of several parts that do not share a softmax, each with a weight of its own (gated
// branches, NSA; routed heads, MoH): out := Σ weights[i] · parts[i]. `parts` are outs of answers
// after their last merge, f32 [n, heads, v_head_dim] as `out`, which must not be one of them; a
// weight is [n, heads, v_head_dim], or 1 in place of n or of v_head_dim, of any dtype.
absl::Status Blend(absl::Span<const TensorView> parts, absl::Span<const TensorView> weights,
                   Tensor* out);

}  // namespace annulus
