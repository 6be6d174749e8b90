// Mover: how a context moves to other workers: away from one that leaves, to new pairs once a copy
// is missing, to one that has joined. One context at a time, all of the cluster.
//
// The context is opened anew on all ready workers, under an id of its own that no caller knows
// (ShardMap::storage_id). Then its tokens are copied, a chunk after the other: those that answer
// for it are asked for their rows, and the new holders store them as any append. Calls go on
// meanwhile, and what they append is copied too; the last of it while appends wait (UNAVAILABLE).
// Then all calls on it wait until every new holder knows that it is the context now, and every old
// one has let go of it: so whatever is found after a loss of the coordinator, the first that is
// complete is right.
//
// A move that meets an error, a lost worker or a call that shortens the context is given up: the
// old holders never stopped being right. It is tried again later.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/coordinator/core/calls.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/members.h"
#include "runtime/coordinator/core/placement.h"
#include "runtime/coordinator/core/recovery.h"
#include "runtime/coordinator/core/tenants.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class Mover {
 public:
  Mover(Outbox& out, Members& members, Tenants& tenants, Contexts& contexts, Calls& calls,
        const Recovery& recovery)
      : out_(out),
        members_(members),
        tenants_(tenants),
        contexts_(contexts),
        calls_(calls),
        recovery_(recovery) {}

  // To be called last of every event: begins a move, goes on with it, or gives it up.
  void Step();
  // The answers to a move's requests come here, and not to a call.
  static bool IsRequest(uint64_t request);
  // `kv_bytes`: what the worker holds of the context; `owner_kv_bytes`: of all of its owner's.
  void OnDone(WorkerId id, uint64_t request, const absl::Status& status, int64_t kv_bytes,
              int64_t owner_kv_bytes);
  // The transport took no message of this request.
  void OnSendFailed(uint64_t request, const absl::Status& why);
  bool Needs(WorkerId id) const;
  bool moving() const { return move_.has_value(); }

 private:
  enum class Phase { kOpening, kReading, kFilling, kActivating, kRetiring };
  struct Move {
    ContextId context = 0;
    ShardMapPtr from;
    ShardMapPtr to;
    int64_t truncations = 0;  // of the context, at the beginning
    Phase phase = Phase::kOpening;
    uint64_t request = 0;         // whose Done is awaited
    std::set<WorkerId> pending;   // from these
    std::vector<int64_t> copied;  // tokens, by layer
    int layer = 0;                // of the chunk that is copied
    TokenRange chunk;
    uint64_t append_number = 0;            // of the last append to the new holders
    int rounds = 0;                        // over all layers
    std::map<WorkerId, int64_t> kv_bytes;  // of the new holders
    absl::Status failure;                  // it has been given up
  };

  void Look();
  void Begin(const Context& context, ShardMap to);
  bool MustMove(const Context& context) const;
  bool IsWorthwhile(const Context& context, const ShardMap& to) const;
  absl::Status CheckSound() const;
  uint64_t Await(absl::Span<const Holder> holders);
  bool NextChunk();
  void Read();
  void Fill();
  void Activate();
  void Switch();
  void Retire(const ShardMap& map);
  void GiveUp(const absl::Status& why);
  void End();

  Outbox& out_;
  Members& members_;
  Tenants& tenants_;
  Contexts& contexts_;
  Calls& calls_;
  const Recovery& recovery_;
  std::optional<Move> move_;
  absl::Time next_look_ = absl::InfinitePast();  // not before
  absl::Duration pause_ = absl::ZeroDuration();  // after the last move
  uint64_t last_request_ = 0;
};

}  // namespace annulus
