// The tensor work of moving a context (core/mover.h): one chunk of a layer, from the rows that its
// old holders send to what its new holders store. Used by one thread.
#pragma once

#include "absl/status/status.h"
#include "annulus/buffer.h"
#include "annulus/tensor.h"
#include "runtime/coordinator/core/core.h"

namespace annulus {

class ContextCopy {
 public:
  explicit ContextCopy(const action::MoveRead& read);

  // What an old rank sent: the same bytes as it once got (PackAppend). DATA_LOSS if they are not as
  // many as it holds.
  absl::Status Take(int rank, const Buffer& rows);

  // What a new rank stores.
  Buffer Pack(int rank) const;

 private:
  const action::MoveRead read_;
  const ContextSpec& spec_;  // of the layer's rows
  Tensor k_;
  Tensor v_;  // empty if V is K's prefix
};

}  // namespace annulus
