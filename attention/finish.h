// What ends the rows of an answer beside the merges: sinks, gates, and the sum of parts that have
// weights of their own. Whoever owns the rows does it, once for each, after their last merge
// (EndRows of partial.h). Pure functions; shapes are the caller's to check.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "attention/partial.h"

namespace annulus {

// INVALID_ARGUMENT unless there is one sink for each head, a finite number or −∞, or none at all.
absl::Status CheckSinks(absl::Span<const float> sinks, int64_t heads);

// Each head's softmax shares its weight with one more score, the head's sink, which has no value
// (gpt-oss): out := out · σ(lse − sink), lse := log(exp(lse) + exp(sink)), natural logarithms.
// `sinks` [heads], or empty: nothing changes. A sink of −∞ changes nothing.
void AddSinks(absl::Span<const float> sinks, PartialView rows);

// out := out · σ(gate), with `gate` [rows, heads, v_head_dim] or [rows, heads, 1], any dtype.
void GateRows(const TensorView& gate, PartialView rows);

// out += weight · part, with `part` [rows, heads, v_head_dim], and `weight` the same, or 1 in place
// of rows or of v_head_dim, any dtype. lse stays as it is.
void AddWeighted(const TensorView& part, const TensorView& weight, PartialView rows);

}  // namespace annulus
