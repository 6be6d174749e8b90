// WorkingKv: the pages one rank can read while a plan runs: its own and those that arrived, and how
// pages travel: packed (packed_pages.h). All pages lie in one memory space. Used by one thread.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "sharding/plan.h"

namespace annulus {

class WorkingKv {
 public:
  // `own`, whose pages lie in `space`, must outlive this; it is copied only if the plan brings this
  // rank pages, or has it look at heads of which it holds none.
  WorkingKv(const Plan& plan, int rank, const KvTable& own, MemorySpace& space);

  const KvTable& table() const { return own_suffices_ ? *own_ : merged_; }

  // The bytes of a transfer that leaves, in the space. A transfer that passes on what arrived in
  // one piece is not copied. INTERNAL if a page is missing.
  absl::StatusOr<Buffer> Pack(const Transfer& transfer);

  // Makes the pages of a transfer readable; takes the bytes as they came, which lie in the space.
  void Receive(const Transfer& transfer, Buffer bytes);

  // Forgets what had arrived before round `round`.
  void DropReceived(int round);
  void BeginRound(int round) { round_ = round; }

 private:
  struct Piece {
    int round;
    HeadRange heads;
    BlockSet blocks;
    Buffer bytes;
  };
  void SetPages(const Piece& piece, bool present);

  const Problem& problem_;
  MemorySpace& space_;
  const KvTable* own_;
  KvTable merged_;
  bool own_suffices_ = false;
  int round_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace annulus
