// Plan: how one attention problem is cut over ranks and what moves. An immutable value; the engine
// (runtime/engine) executes it on each rank, and planning needs no clock, no I/O and no CUDA.
//
// A plan is a short list of rounds. In each round a rank first starts the round's transfers, then
// runs the round's computes on what it held BEFORE the round, then waits for the transfers; so
// communication of a round hides behind its compute, and what arrives is usable from the next
// round. Everything a compute makes is a partial; partials that arrive are merged into those of the
// same rows and heads. At the end every query row is whole at its home.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/dtype.h"
#include "annulus/plan_kind.h"
#include "attention/block_set.h"
#include "attention/pattern.h"
#include "attention/ranges.h"
#include "sharding/layout.h"

namespace annulus {

// Up to so many ranks that hold the same heads pass-q moves nothing between them: partials go
// straight to the home of their rows, in the fewest rounds. No caller takes in more.
inline constexpr size_t kDirectPartialsMax = 4;

// Query heads of a problem.
inline constexpr int kPlanHeadsMax = 1 << 16;

// Where queries start and answers end: kOwners = on the ranks that hold those tokens (SPMD, all
// heads, cut by `home_partition`); kCaller = outside the ranks (the service's coordinator).
enum class Home { kOwners, kCaller };

// What is to be computed, and what lies where before. The context has the tokens [0, kv_tokens);
// the queries are at any positions, before its end or beyond it, and see keys of
// [pattern.first_key(), keys_end) alone.
struct Problem {
  int64_t q_tokens = 0;
  std::optional<int64_t> q_start = {};  // of the first query; absent: they are the context's last
  int64_t kv_tokens = 0;
  std::optional<int64_t> keys_end = {};  // absent: kv_tokens
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  bool v_is_k_prefix = false;  // V is K's first v_head_dim dims: it moves no bytes of its own
  DType dtype = DType::kBF16;  // of q, k and v
  Pattern pattern;
  Home home = Home::kOwners;
  // Of tokens over all ranks: where rows start and end when home is kOwners, and how plans that cut
  // rows anew cut them.
  PartitionSpec home_partition;
  Layout kv;  // who holds the KV now; may have room for more blocks than kv_tokens has

  int group() const { return heads / kv_heads; }
  TokenRange q_range() const {
    const int64_t begin = q_start.value_or(kv_tokens - q_tokens);
    return {begin, begin + q_tokens};
  }
  TokenRange keys() const { return {pattern.first_key(), keys_end.value_or(kv_tokens)}; }
  int world() const { return kv.world(); }

  BlockSet QueryBlocks() const;  // those with a row of q_range
  BlockSet KvBlocks() const;     // those with a key
  // The KV blocks with a key that `rank` holds before the plan, of each of the heads
  // kv.KvHeads(rank).
  BlockSet HeldBlocks(int rank) const { return kv.Blocks(rank).Intersect(KvBlocks()); }
  // Query blocks at home there; kOwners. Those beyond the context's are with its last.
  BlockSet HomeRows(int rank) const;
  int64_t Rows(const BlockSet& blocks) const;  // query rows in these blocks
};

// INVALID_ARGUMENT names the field that makes no sense: its value and what was expected.
absl::Status CheckProblem(const Problem& problem);

inline constexpr int kCaller = -1;  // the rank number of the caller in a transfer

// Rows, pages or partials that go from one rank to another.
struct Transfer {
  enum class Kind { kQuery, kKv, kPartial };
  Kind kind = Kind::kKv;
  int source = 0;       // a rank, or kCaller
  int destination = 0;  // a rank, or kCaller; ≠ source
  HeadRange heads;      // query heads for kQuery and kPartial, KV heads for kKv
  BlockSet blocks;      // query blocks or KV blocks; rows outside q_range are not part of it
};

// One launch: the query blocks' rows (within q_range) of these query heads against these KV blocks.
struct Compute {
  int rank = 0;
  BlockSet q_blocks;
  HeadRange heads;
  BlockSet kv_blocks;
};

struct Round {
  std::vector<Transfer> transfers;
  std::vector<Compute> computes;
  bool drop_received_kv = false;  // KV that arrived in earlier rounds is not needed after this one
};

// In how many stages a group-cast hides what travels behind what is computed; 0: not at all. Stages
// are KV heads apart, so that no more of them than KV heads take effect. Other kinds have one form.
inline constexpr int kStagesDefault = 1;
inline constexpr int kStagesMax = 1024;

class Plan {
 public:
  Plan(PlanKind kind, Problem problem, std::vector<Round> rounds, int stages = kStagesDefault);

  PlanKind kind() const { return kind_; }
  int stages() const { return stages_; }
  const Problem& problem() const { return problem_; }
  const std::vector<Round>& rounds() const { return rounds_; }
  int world() const { return problem_.world(); }

  // The rows of q that start and end at `rank` (kOwners).
  BlockSet HomeRows(int rank) const { return problem_.HomeRows(rank); }

  // Payload bytes of one transfer: kQuery rows·heads·head_dim elements of dtype; kKv tokens·heads·
  // (head_dim + v_head_dim) elements (head_dim alone when v_is_k_prefix); kPartial rows·heads·
  // (v_head_dim + 1) f32. The last block with a key counts its tokens up to keys().end only.
  int64_t Bytes(const Transfer& transfer) const;
  int64_t BytesSent(int rank) const;      // kCaller allowed
  int64_t BytesReceived(int rank) const;  // kCaller allowed
  int64_t BytesTotal() const;             // Σ over transfers

  // Whether it is right: every transfer's source holds what it sends and its destination does not
  // yet, every compute's rank holds the queries and every page the pattern reads, every (row, head,
  // KV block) that the pattern allows is computed exactly once, every partial reaches its home.
  // INTERNAL names what is not, and what `stop` says if it has stopped. Walks blocks, never tokens:
  // well under a second at 1M tokens and 64 ranks, more where rows differ much in who computes
  // them.
  absl::Status Validate(const Stop& stop = {}) const;

  // Some lines for people: rounds, transfers, bytes.
  std::string ToString() const;

 private:
  PlanKind kind_;
  Problem problem_;
  std::vector<Round> rounds_;
  int stages_;
};

// Builds the plan of that kind. INVALID_ARGUMENT for a problem that makes no sense (names the
// field). No kind refuses on divisibility: heads replicate or ranks idle. A pure function: the same
// arguments give the same plan everywhere, or what `stop` says once it has stopped.
absl::StatusOr<Plan> BuildPlan(PlanKind kind, const Problem& problem, int stages = kStagesDefault,
                               const Stop& stop = {});

}  // namespace annulus
