#include "runtime/coordinator/step_work.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/coordinator/append_work.h"
#include "runtime/coordinator/check_tensor.h"
#include "runtime/coordinator/limits.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

std::vector<bool> FindReaders(const ShardMap& map, const Pattern& pattern, BlockRun q_blocks,
                              const Stop& stop) {
  const int64_t tokens = (q_blocks.last() + 1) * kBlockTokens;
  const Layout layout = LayoutOf(map.spec, map.world, tokens);
  std::vector<bool> readers(static_cast<size_t>(map.world));
  std::vector<TileRun> row;
  for (int head_group = 0; head_group < layout.mesh().head_groups; ++head_group) {
    std::vector<bool> owners(static_cast<size_t>(layout.mesh().token_groups));
    const HeadRange heads = layout.KvHeads(layout.Rank(head_group, 0));
    for (int head = heads.first; head < heads.end(); ++head) {
      const int same = pattern.HeadClass(head);
      if (same >= heads.first && same < head) continue;
      for (int64_t q = q_blocks.first; q <= q_blocks.last() && !stop.stopped(); ++q) {
        pattern.Row(head, {q * kBlockTokens, (q + 1) * kBlockTokens}, tokens, &row);
        for (const TileRun& run : row) layout.tokens().MarkOwners(run.blocks, &owners);
      }
    }
    for (size_t group = 0; group < owners.size(); ++group) {
      const int rank = layout.Rank(head_group, static_cast<int>(group));
      readers[static_cast<size_t>(rank)] = owners[group];
    }
  }
  return readers;
}

size_t QueryBytes(const ContextSpec& spec, int64_t tokens, HeadRange heads) {
  return static_cast<size_t>(tokens * heads.count * spec.head_dim) * SizeOf(spec.dtype);
}

size_t PartialBytes(const ContextSpec& spec, int64_t tokens, HeadRange heads) {
  return annulus::PartialBytes(tokens, heads.count, spec.v_head_dim);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const std::vector<bool>>> StepPlanner::Readers(
    const ShardMap& map, const Pattern& pattern, TokenRange q, const Stop& stop) {
  const int64_t first = q.begin / kBlockTokens;
  const BlockRun q_blocks{first, BlocksOf(q.end) - first, 1};
  const Key key = {static_cast<int64_t>(map.context), static_cast<int64_t>(map.epoch),
                   pattern.id()};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Known* known = readers_.Find(key);
    if (known != nullptr && known->q_blocks == q_blocks) return known->readers;
  }
  auto readers =
      std::make_shared<const std::vector<bool>>(FindReaders(map, pattern, q_blocks, stop));
  ANNULUS_RETURN_IF_ERROR(stop.status());
  const std::lock_guard<std::mutex> lock(mutex_);
  readers_.Insert(key, {q_blocks, readers});
  return readers;
}

absl::Status StepWork::PrepareItem(size_t index, Item& item) {
  const StepRequest& request = requests_[index];
  const ShardMap& map = *item.admitted->map;
  const ContextSpec& spec = map.spec;
  item.kv = {request.start, request.start + request.k.tokens};
  if (item.admitted->appends) ANNULUS_RETURN_IF_ERROR(CheckKv(spec, request.k, request.v));
  if (!item.admitted->attends) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", request.q, spec.heads, spec.head_dim, spec.dtype));
  ANNULUS_RETURN_IF_ERROR(CheckScale(request.scale));
  const auto answer_bytes =
      static_cast<int64_t>(PartialBytes(spec, request.q.tokens, {0, spec.heads}));
  if (answer_bytes > kStepAnswerBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens of q: ", request.q.tokens, " with an answer of ", answer_bytes,
        " bytes; expected at most ", kStepAnswerBytesMax, ": use Attend for so many queries"));
  }
  ANNULUS_ASSIGN_OR_RETURN(
      const std::shared_ptr<const Pattern> pattern,
      planner_.patterns().PatternOf(map.retention, request.layer, request.pattern));
  ANNULUS_RETURN_IF_ERROR(pattern->CheckTokens(item.kv.end, spec.tokens_expected == 0));
  const TokenRange q{item.kv.end - request.q.tokens, item.kv.end};
  ANNULUS_RETURN_IF_ERROR(
      map.retention->CheckReads(request.layer, item.admitted->horizon, *pattern, q, q.end, stop_));
  ANNULUS_ASSIGN_OR_RETURN(item.readers, planner_.Readers(map, *pattern, q, stop_));
  item.merged = Partial(request.q.tokens, spec.heads, spec.v_head_dim);
  return absl::OkStatus();
}

// Every holder of a context hears of its append, as in AppendWork; one for each rank answers.
std::vector<StepWork::Part> StepWork::PartsOf(WorkerId worker) const {
  std::vector<Part> parts;
  for (size_t i = 0; i < items_.size(); ++i) {
    const Item& item = items_[i];
    if (!item.admitted->live() || item.refused) continue;
    const ShardMap& map = *item.admitted->map;
    const absl::Span<const Holder> receivers = map.Receivers(item.admitted->appends);
    const auto at =
        std::find_if(receivers.begin(), receivers.end(),
                     [worker](const Holder& holder) { return holder.worker == worker; });
    if (at == receivers.end()) continue;
    Part part;
    part.item = i;
    part.rank = at->rank;
    part.q_heads = LayoutOf(map.spec, map.world, 0).QueryHeads(part.rank);
    part.reads = at - receivers.begin() < map.world && item.readers != nullptr &&
                 (*item.readers)[static_cast<size_t>(part.rank)];
    parts.push_back(part);
  }
  return parts;
}

std::byte* StepWork::PackQueries(const Part& part, std::byte* at) const {
  const TensorView& q = requests_[part.item].q;
  const DType dtype = items_[part.item].admitted->map->spec.dtype;
  // Heads that follow each other without gaps are converted as one.
  const int64_t at_once = q.head_stride == q.dim ? part.q_heads.count : 1;
  for (int64_t row = 0; row < q.tokens; ++row) {
    for (int64_t head = part.q_heads.first; head < part.q_heads.end(); head += at_once) {
      Convert(q.Row(row, head), q.dtype, at, dtype, at_once * q.dim);
      at += static_cast<size_t>(at_once * q.dim) * SizeOf(dtype);
    }
  }
  return at;
}

Message StepWork::Pack(CallId call, const std::vector<Part>& parts) const {
  wire::Step step;
  step.request = call;
  step.time_left = deadline_ - clock_.Now();
  step.items.reserve(parts.size());
  size_t tensor_bytes = 0;
  std::vector<Layout> layouts;
  layouts.reserve(parts.size());
  for (const Part& part : parts) {
    const StepRequest& request = requests_[part.item];
    const Item& item = items_[part.item];
    const ShardMap& map = *item.admitted->map;
    const bool appends = item.admitted->appends;
    layouts.push_back(LayoutOf(map.spec, map.world, item.kv.end));
    wire::StepItem to{map.epoch, map.storage, request.layer, appends ? item.kv.begin : item.kv.end};
    if (appends) {
      to.k_tokens = item.kv.size();
      to.mark = item.admitted->mark;
      to.append_bytes =
          static_cast<size_t>(AppendBytes(map.spec, layouts.back(), part.rank, item.kv));
    }
    if (part.reads) {
      to.q_tokens = request.q.tokens;
      to.scale = request.scale != 0 ? request.scale
                                    : 1.0f / std::sqrt(static_cast<float>(map.spec.head_dim));
      to.pattern = request.pattern;
      to.query_bytes = QueryBytes(map.spec, request.q.tokens, part.q_heads);
    }
    tensor_bytes += to.append_bytes + to.query_bytes;
    step.items.push_back(std::move(to));
  }
  Buffer tensors(tensor_bytes);
  std::byte* at = tensors.data();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const StepRequest& request = requests_[part.item];
    const Item& item = items_[part.item];
    if (item.admitted->appends) {
      at = PackAppend(item.admitted->map->spec, layouts[i], part.rank, item.kv, request.k,
                      request.v, at);
    }
    if (part.reads) at = PackQueries(part, at);
  }
  ANNULUS_CHECK(at == tensors.data() + tensors.size());
  return wire::Encode(std::move(step), std::move(tensors));
}

absl::StatusOr<PreparedWork> StepWork::Prepare(const action::Admit& admit) {
  admit_ = admit;
  items_.resize(admit_.items.size());
  PreparedWork work;
  for (size_t i = 0; i < items_.size(); ++i) {
    items_[i].admitted = &admit_.items[i];
    if (!admit_.items[i].live()) continue;
    absl::Status status = PrepareItem(i, items_[i]);
    if (status.ok()) continue;
    items_[i].refused = true;
    work.refused.emplace_back(i, std::move(status));
  }
  for (size_t rank = 0; rank < admit_.workers.size(); ++rank) {
    parts_.push_back(PartsOf(admit_.workers[rank]));
    if (parts_.back().empty()) continue;
    work.messages.push_back({static_cast<int>(rank), Pack(admit_.call, parts_.back())});
  }
  return work;
}

absl::Status StepWork::OnAnswer(RankAnswer answer) {
  const auto& done = std::get<wire::StepDone>(answer.done);
  const std::vector<Part>& parts = parts_.at(static_cast<size_t>(answer.rank));
  size_t at = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (!part.reads || !done.items.at(i).status.ok()) continue;
    Item& item = items_[part.item];
    const ContextSpec& spec = item.admitted->map->spec;
    const int64_t rows = requests_[part.item].q.tokens;
    const size_t bytes = PartialBytes(spec, rows, part.q_heads);
    if (answer.payload.size() - at < bytes) break;
    MergeHeads(item.merged.view(), part.q_heads.first,
               PartialIn(answer.payload.data() + at, rows, part.q_heads.count, spec.v_head_dim));
    at += bytes;
  }
  if (at == answer.payload.size()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "worker ", admit_.workers[static_cast<size_t>(answer.rank)], " answered a step with ",
      answer.payload.size(), " bytes of partials, which is not what was asked for"));
}

std::vector<absl::StatusOr<StepResult>> StepWork::TakeResults(const action::Finish& finish) && {
  std::vector<absl::StatusOr<StepResult>> results;
  results.reserve(requests_.size());
  for (size_t i = 0; i < requests_.size(); ++i) {
    const action::ItemEnd& end = finish.items.at(i);
    if (!end.status.ok()) {
      results.push_back(end.status);
      continue;
    }
    StepResult result;
    result.epoch = end.epoch;
    result.tokens = end.tokens;
    if (requests_[i].q.tokens > 0) {
      if (absl::Status status = Finalise(items_[i].merged.view()); !status.ok()) {
        results.push_back(std::move(status));
        continue;
      }
      result.out = std::move(items_[i].merged).TakeOut();
      result.lse = std::move(items_[i].merged).TakeLse();
    }
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace annulus
