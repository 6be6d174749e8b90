#include "runtime/worker/decode_batch.h"

#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/store/context_layout.h"

namespace annulus {

size_t DecodeBatch::Problem::answer_bytes() const {
  return PartialBytes(args.q.tokens, args.heads.count, args.into.v_head_dim);
}

absl::StatusOr<std::shared_ptr<const Pattern>> DecodeBatch::Parse(const std::string& text,
                                                                  int kv_heads) {
  const std::string key = absl::StrCat(kv_heads, " ", text);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto* found = patterns_.Find(key)) return *found;
  ANNULUS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Parse(text, kv_heads));
  auto shared = std::make_shared<const Pattern>(std::move(pattern));
  patterns_.Insert(key, shared);
  return shared;
}

const BlockSet& DecodeBatch::KeysOf(ContextId context, const KvStore::Shard& shard,
                                    int64_t kv_tokens) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Held& held = held_[context];
  const int64_t blocks = BlocksOf(kv_tokens);
  if (held.blocks != blocks) {
    held.blocks = blocks;
    held.keys = LayoutOf(shard.spec, shard.world, kv_tokens)
                    .Blocks(shard.rank)
                    .Intersect(BlockSet::Range(0, blocks));
  }
  return held.keys;
}

absl::Status DecodeBatch::Store(const wire::StepItem& item, absl::Span<const std::byte> packed) {
  if (item.k_tokens == 0) return absl::OkStatus();
  return store_.Append(item.context, item.layer, {item.start, item.start + item.k_tokens}, packed,
                       item.mark);
}

absl::StatusOr<DecodeBatch::Problem> DecodeBatch::SetUp(const wire::StepItem& item,
                                                        const std::byte* queries,
                                                        const std::atomic<bool>* cancel) {
  Problem problem;
  if (item.q_tokens == 0) return problem;
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(item.context));
  const ContextSpec& spec = shard->spec;
  const int64_t kv_tokens = item.start + item.k_tokens;
  ANNULUS_ASSIGN_OR_RETURN(const KvTable* table, store_.Table(item.context, item.layer, kv_tokens));
  AttendArgs& args = problem.args;
  args.heads = LayoutOf(spec, shard->world, kv_tokens).QueryHeads(shard->rank);
  args.q =
      TensorView::Contiguous(queries, spec.dtype, item.q_tokens, args.heads.count, spec.head_dim);
  if (static_cast<size_t>(args.q.size()) * SizeOf(spec.dtype) != item.query_bytes) {
    return absl::DataLossError(
        absl::StrCat("a step brought ", item.query_bytes, " bytes of queries, expected ",
                     static_cast<size_t>(args.q.size()) * SizeOf(spec.dtype)));
  }
  if (!item.pattern.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(problem.asked, Parse(item.pattern, spec.kv_heads));
  }
  args.q_ranges = {{kv_tokens - item.q_tokens, kv_tokens}};
  args.kv_tokens = kv_tokens;
  args.group = spec.heads / spec.kv_heads;
  args.kv = table;
  args.pattern = problem.asked != nullptr ? problem.asked.get()
                                          : &store_.PatternOfLayer(item.context, item.layer);
  args.keys = &KeysOf(item.context, *shard, kv_tokens);
  args.scale = item.scale;
  args.into.v_head_dim = spec.v_head_dim;
  args.cancel = cancel;
  args.urgent = true;
  return problem;
}

// If the batch fails, each problem is solved for itself, so that only the one to blame fails.
void DecodeBatch::Solve(const std::vector<Problem>& problems, std::vector<absl::Status>* statuses) {
  std::vector<AttendArgs> batch;
  for (const Problem& problem : problems) {
    if (problem.args.into.rows == 0) continue;
    SetIdentity(problem.args.into);
    batch.push_back(problem.args);
  }
  if (batch.empty() || backend_.AttendBatch(batch).ok()) return;
  for (size_t i = 0; i < problems.size(); ++i) {
    if (problems[i].args.into.rows == 0) continue;
    SetIdentity(problems[i].args.into);
    (*statuses)[i] = backend_.Attend(problems[i].args);
  }
}

// Here and not where partials are merged: what fails here is taken back everywhere.
absl::Status DecodeBatch::CheckRange(const AttendArgs& args, int layer) {
  std::optional<Overflow> overflow = FindOverflow(args.into);
  if (!overflow.has_value()) return absl::OkStatus();
  overflow->head += args.heads.first;
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", layer, ", ", OverflowError(*overflow).message()));
}

Message DecodeBatch::Run(const WorkerTask& task, const Allowed& allowed) {
  const auto& step = std::get<wire::Step>(task.body);
  const size_t count = step.items.size();
  std::vector<absl::Status> statuses(count);
  std::vector<const std::byte*> queries(count);
  const std::byte* at = task.payload.data();
  for (size_t i = 0; i < count; ++i) {
    const wire::StepItem& item = step.items[i];
    queries[i] = at + item.append_bytes;
    statuses[i] = allowed(item.context, item.epoch);
    if (statuses[i].ok()) statuses[i] = Store(item, {at, item.append_bytes});
    at = queries[i] + item.query_bytes;
  }
  // Once everything is stored, since what a context appends may move the pages of another.
  std::vector<Problem> problems(count);
  wire::StepDone done;
  done.request = step.request;
  size_t partial_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!statuses[i].ok()) continue;
    absl::StatusOr<Problem> problem = SetUp(step.items[i], queries[i], task.cancel.get());
    statuses[i] = problem.status();
    if (!problem.ok()) continue;
    problems[i] = *std::move(problem);
    partial_bytes += problems[i].answer_bytes();
  }
  Buffer partials(partial_bytes);
  std::byte* into = partials.data();
  for (Problem& problem : problems) {
    const size_t bytes = problem.answer_bytes();
    if (bytes == 0) continue;
    AttendArgs& args = problem.args;
    args.into = PartialIn(into, args.q.tokens, args.heads.count, args.into.v_head_dim);
    into += bytes;
  }
  Solve(problems, &statuses);
  for (size_t i = 0; i < count; ++i) {
    if (problems[i].answer_bytes() == 0 || !statuses[i].ok()) continue;
    statuses[i] = CheckRange(problems[i].args, step.items[i].layer);
  }
  std::byte* end = partials.data();
  for (size_t i = 0; i < count; ++i) {
    done.items.push_back({statuses[i], store_.ContextBytes(step.items[i].context)});
    const size_t bytes = problems[i].answer_bytes();
    if (bytes == 0 || !statuses[i].ok()) continue;
    const auto* from = reinterpret_cast<const std::byte*>(problems[i].args.into.out);
    if (from != end) std::memmove(end, from, bytes);  // one before it has failed
    end += bytes;
  }
  return wire::Encode(std::move(done),
                      partials.Part(0, static_cast<size_t>(end - partials.data())));
}

}  // namespace annulus
