// The engine: executes one rank's part of a plan with a backend and an exchange. The same code runs
// a benchmark rank, an in-process worker of `attend --workers N` and a service worker.
// All of a run lies where its KV lies: in host memory, or in that of the backend's GPU. What an
// exchange of host memory moves between GPUs is copied through the host.
// Thread-compatible: one Run at a time per exchange; many ranks may run in threads of one process.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "attention/backend.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "base/thread_pool.h"
#include "comm/exchange.h"
#include "sharding/plan.h"

namespace annulus {

struct RankTask {
  const Plan* plan = nullptr;
  int rank = 0;
  // Home::kOwners: this rank's rows [HomeRows within q_range, heads, head_dim], ascending,
  // contiguous, of the problem's dtype, in the memory that kv lies in.
  TensorView q;
  // Home::kCaller: what PackQueries made for this rank, in host memory.
  Buffer q_packed;
  const KvTable* kv = nullptr;  // every page of plan.problem().kv that this rank holds
  float scale = 1.0f;
  absl::Time deadline = absl::InfiniteFuture();
  const std::atomic<bool>* cancel = nullptr;
  ThreadPool::Turn turn;  // as in AttendArgs
  // Told of each step and launch with its begin and end; for traces. May be empty.
  std::function<void(absl::string_view name, absl::Time begin, absl::Time end)> trace;
};

struct RankResult {
  PartialBuffer home;    // Home::kOwners: rows that have ended, as q, where kv lies
  Buffer answer_packed;  // Home::kCaller: for MergeAnswer, in host memory
  // Home::kOwners: the first of this rank's rows that has no answer, as a row of all of q. The
  // ranks go on, so that whoever asked hears of the same row each time.
  std::optional<Overflow> overflow;
  int64_t bytes_sent = 0;  // payload this rank gave to others, the caller included
  int64_t bytes_received = 0;
  double compute_s = 0;                 // in launches
  double wait_s = 0;                    // for transfers that no launch hid
  std::vector<double> round_compute_s;  // compute_s, round by round
};

// Errors: those of the backend and the exchange, FAILED_PRECONDITION for an exchange of a GPU's
// memory if kv is in the host's; on any the exchange is aborted, so that the other ranks fail too
// instead of waiting.
absl::StatusOr<RankResult> RunRank(const RankTask& task, Backend& backend, Exchange& exchange);

// Caller's side of Home::kCaller. Packs q [q_tokens, heads, head_dim] of any dtype, rounded to the
// problem's, at `to`, which has QueryBytes; returns the end.
std::byte* PackQueries(const Plan& plan, int rank, const TensorView& q, std::byte* to);
// Whether PackQueries makes the same for two ranks.
bool SameQueries(const Plan& plan, int rank, int other);
// Bytes of what PackQueries makes, and of what MergeAnswer takes.
int64_t QueryBytes(const Plan& plan, int rank);
int64_t AnswerBytes(const Plan& plan, int rank);

// Merges a rank's answer into out/lse [q_tokens, heads, …]. DATA_LOSS if its size is not the
// plan's.
absl::Status MergeAnswer(const Plan& plan, int rank, const Buffer& answer, PartialView into);

}  // namespace annulus
