// The caller's side of a plan whose queries start and answers end outside the ranks.
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/tiles.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

template <typename Fn>
void ForEachTransfer(const Plan& plan, int source, int destination, Fn fn) {
  for (const Round& round : plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.source == source && transfer.destination == destination) fn(transfer);
    }
  }
}

int64_t BytesBetween(const Plan& plan, int source, int destination) {
  int64_t bytes = 0;
  ForEachTransfer(plan, source, destination,
                  [&](const Transfer& transfer) { bytes += plan.Bytes(transfer); });
  return bytes;
}

}  // namespace

int64_t QueryBytes(const Plan& plan, int rank) {
  return BytesBetween(plan, kCaller, rank);
}

int64_t AnswerBytes(const Plan& plan, int rank) {
  return BytesBetween(plan, rank, kCaller);
}

bool SameQueries(const Plan& plan, int rank, int other) {
  std::vector<const Transfer*> these, those;
  ForEachTransfer(plan, kCaller, rank, [&](const Transfer& one) { these.push_back(&one); });
  ForEachTransfer(plan, kCaller, other, [&](const Transfer& one) { those.push_back(&one); });
  return std::equal(these.begin(), these.end(), those.begin(), those.end(),
                    [](const Transfer* a, const Transfer* b) {
                      return a->heads == b->heads && a->blocks.runs() == b->blocks.runs();
                    });
}

std::byte* PackQueries(const Plan& plan, int rank, const TensorView& q, std::byte* to) {
  const Problem& problem = plan.problem();
  const Rows all(problem.QueryBlocks(), problem.q_range());
  ForEachTransfer(plan, kCaller, rank, [&](const Transfer& transfer) {
    to = PackQueryRows(problem, Rows(transfer.blocks, problem.q_range()), transfer.heads, all, q,
                       to);
  });
  return to;
}

absl::Status MergeAnswer(const Plan& plan, int rank, const Buffer& answer, PartialView into) {
  const Problem& problem = plan.problem();
  const int64_t expected = AnswerBytes(plan, rank);
  if (static_cast<int64_t>(answer.size()) != expected) {
    return absl::DataLossError(absl::StrCat("answer of rank ", rank, ": ", answer.size(),
                                            " bytes; expected ", expected, ", as the plan has it"));
  }
  const Rows all(problem.QueryBlocks(), problem.q_range());
  Buffer bytes = answer;  // the same bytes; only read
  std::byte* at = bytes.data();
  absl::Status status;
  ForEachTransfer(plan, rank, kCaller, [&](const Transfer& transfer) {
    const Rows rows(transfer.blocks, problem.q_range());
    status.Update(MergeRows(HostMemory(), all, {0, problem.heads}, into, rows, transfer.heads,
                            PartialIn(at, rows.count(), transfer.heads.count, problem.v_head_dim)));
    at += plan.Bytes(transfer);
  });
  return status;
}

}  // namespace annulus
