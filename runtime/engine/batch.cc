#include "runtime/engine/batch.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/rows.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

size_t AnswerBytes(const AttendArgs& part) {
  return PartialBytes(part.q.tokens, part.heads.count, part.into.v_head_dim);
}

bool Same(const Transfer& transfer, const Compute& compute) {
  return transfer.heads == compute.heads && transfer.blocks.runs() == compute.q_blocks.runs();
}

void GivePlaces(absl::Span<BatchItem> items, std::byte* into) {
  for (BatchItem& item : items) {
    if (!item.status.ok()) continue;
    for (AttendArgs& part : item.parts) {
      part.into = PartialIn(into, part.q.tokens, part.heads.count, part.into.v_head_dim);
      into += AnswerBytes(part);
      item.bytes_received +=
          static_cast<int64_t>(part.q.size()) * static_cast<int64_t>(SizeOf(part.q.dtype));
      SetIdentity(part.into);
    }
  }
}

void Solve(absl::Span<BatchItem> items, Backend& backend) {
  std::vector<AttendArgs> batch;
  for (const BatchItem& item : items) {
    if (item.status.ok()) batch.insert(batch.end(), item.parts.begin(), item.parts.end());
  }
  if (batch.empty() || backend.AttendBatch(batch).ok()) return;
  for (BatchItem& item : items) {
    if (!item.status.ok() || item.parts.empty()) continue;
    for (const AttendArgs& part : item.parts) SetIdentity(part.into);
    item.status = backend.AttendBatch(item.parts);
  }
}

absl::Status CheckRange(const BatchItem& item) {
  for (const AttendArgs& part : item.parts) {
    std::optional<Overflow> overflow = FindOverflow(part.into);
    if (!overflow.has_value()) continue;
    overflow->head += part.heads.first;
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", item.layer, ", ", OverflowError(*overflow).message()));
  }
  return absl::OkStatus();
}

}  // namespace

DirectParts DirectPartsOf(const Plan& plan, int rank, const std::byte* queries) {
  if (plan.kind() != PlanKind::kPassQ) return {};  // others may read what the rank does not hold
  const Problem& problem = plan.problem();
  std::vector<const Transfer*> in, out;
  std::vector<const Compute*> computes;
  for (const Round& round : plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.source != rank && transfer.destination != rank) continue;
      if (transfer.source != kCaller && transfer.destination != kCaller) return {};
      (transfer.source == rank ? out : in).push_back(&transfer);
    }
    for (const Compute& compute : round.computes) {
      if (compute.rank == rank) computes.push_back(&compute);
    }
  }
  if (in.size() != computes.size() || out.size() != computes.size()) return {};
  DirectParts parts;
  for (size_t i = 0; i < computes.size(); ++i) {
    const Compute& compute = *computes[i];
    if (!Same(*in[i], compute) || !Same(*out[i], compute)) return {};
    const Rows rows(compute.q_blocks, problem.q_range());
    if (rows.count() == 0 || compute.heads.count == 0) continue;
    AttendArgs& part = parts.emplace_back();
    part.q = TensorView::Contiguous(queries, problem.dtype, rows.count(), compute.heads.count,
                                    problem.head_dim);
    queries += static_cast<size_t>(part.q.size()) * SizeOf(problem.dtype);
    part.q_ranges = rows.ranges();
    part.heads = compute.heads;
    part.kv_tokens = problem.keys().end;
    part.group = problem.group();
    part.pattern = &problem.pattern;
    part.keys = &compute.kv_blocks;
    part.into.v_head_dim = problem.v_head_dim;
  }
  return parts;
}

Buffer RunBatch(absl::Span<BatchItem> items, Backend& backend) {
  size_t bytes = 0;
  for (const BatchItem& item : items) {
    if (!item.status.ok()) continue;
    for (const AttendArgs& part : item.parts) bytes += AnswerBytes(part);
  }
  Buffer partials(bytes);
  GivePlaces(items, partials.data());
  Solve(items, backend);
  std::vector<Buffer> answers;
  bool whole = true;  // the partials are the answer
  size_t at = 0;
  for (BatchItem& item : items) {
    if (item.ranked != nullptr && item.status.ok()) {
      whole = false;
      absl::StatusOr<RankResult> result = RunRank(*item.ranked, backend, *item.exchange);
      item.status = result.status();
      if (!result.ok()) continue;
      item.bytes_sent = result->bytes_sent;
      item.bytes_received = result->bytes_received;
      answers.push_back(std::move(result->answer_packed));
    }
    if (!item.answer.empty() && item.status.ok()) {
      whole = false;
      answers.push_back(std::move(item.answer));
    }
    size_t own = 0;
    for (const AttendArgs& part : item.parts) {
      if (part.into.out != nullptr) own += AnswerBytes(part);
    }
    if (own > 0 && item.status.ok() && item.refuses_overflow) item.status = CheckRange(item);
    if (own > 0 && item.status.ok()) {
      item.bytes_sent = static_cast<int64_t>(own);
      answers.push_back(partials.Part(at, own));
    }
    whole &= own == 0 || item.status.ok();
    at += own;
  }
  if (whole) return partials;
  return answers.size() == 1 ? std::move(answers[0]) : Join(answers);
}

}  // namespace annulus
