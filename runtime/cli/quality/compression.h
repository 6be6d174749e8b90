// Contexts that Compress makes smaller, as `annulus quality` asks for them: rules of the
// literature, and what a rule leaves of a task's rows. Thread-compatible: uses the backend's
// threads.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "annulus/types.h"
#include "attention/backend.h"
#include "runtime/engine/columns_local.h"

namespace annulus {

// snapkv(keep), h2o(keep): a rule, and which queries vote.
struct Compression {
  std::string text;  // as it was given
  KeepRule rule = {};
  int64_t voters_max = 0;  // of a prompt, its last ones
};

// SnapKV (2404.14469 §4): the last 32 queries vote, pooled by the largest over 7 keys; they are
// kept. H2O (2306.14048 §4): all queries vote, no pool; half of what is kept are the last keys.
absl::StatusOr<Compression> ParseCompression(absl::string_view text);

// What the rule leaves of k and v, where the prompt's last queries, which `q` [rows, heads,
// head_dim] is, vote. Scores are q·k / √head_dim. Errors as CompressLocally.
absl::StatusOr<CompressedRows> Compressed(const Compression& compression, const TensorView& q,
                                          const TensorView& k, const TensorView& v,
                                          Backend& backend);

// `rows` and then `more`, alike but for their tokens.
Tensor Joined(const TensorView& rows, const TensorView& more);

}  // namespace annulus
