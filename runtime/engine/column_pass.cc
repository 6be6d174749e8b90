#include "runtime/engine/column_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/select/keep.h"
#include "base/status.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

static_assert(sizeof(ExpSum) == 40);

// Blocks that one thread takes at a time.
constexpr int64_t kBlocksOfTask = 16;

}  // namespace

ColumnPass::ColumnPass(const ContextSpec& spec, const Layout& layout, TokenRange queries,
                       int64_t kv_tokens)
    : spec_(spec),
      queries_(queries),
      kv_tokens_(kv_tokens),
      group_(spec.heads / spec.kv_heads),
      shares_(static_cast<size_t>(layout.world())) {
  const BlockSet all = BlockSet::Range(0, BlocksOf(kv_tokens));
  for (int rank = 0; rank < layout.world(); ++rank) {
    Share& share = shares_[static_cast<size_t>(rank)];
    const std::vector<int64_t> blocks = layout.Blocks(rank).Intersect(all).ToVector();
    if (blocks.empty()) continue;
    ForEachHead(layout.KvHeads(rank), [&](int head) {
      if (layout.Source(head, layout.TokenGroup(rank)) == rank) share.kv_heads.push_back(head);
    });
    share.blocks = blocks;
    for (const int64_t block : blocks) {
      share.tokens += std::min(kBlockTokens, kv_tokens - block * kBlockTokens);
    }
  }
}

absl::Status ColumnPass::Check() const {
  const int64_t votes = kv_tokens_ * spec_.kv_heads * static_cast<int64_t>(sizeof(float));
  if (votes > kSelectBytesMax || kv_tokens_ > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_len: ", kv_tokens_, " with ", votes,
                     " bytes of votes; expected at most select_bytes_max, ", kSelectBytesMax));
  }
  int64_t sums = 0;
  for (const Share& share : shares_) {
    sums += std::ssize(share.kv_heads) * sums_of_head() * static_cast<int64_t>(sizeof(ExpSum));
  }
  if (sums <= kSelectBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tokens of q: ", queries_.size(), " with ", sums,
      " bytes of sums; expected at most select_bytes_max, ", kSelectBytesMax, ": ask fewer"));
}

size_t ColumnPass::RowBytes() const {
  const int64_t dims = spec_.head_dim + (spec_.v_is_k_prefix ? 0 : spec_.v_head_dim);
  return static_cast<size_t>(dims) * SizeOf(spec_.dtype);
}

size_t ColumnPass::AskedBytes(int rank, ColumnTrip trip) const {
  if (trip == ColumnTrip::kRows) return 0;
  size_t bytes = static_cast<size_t>(spec_.head_dim) * SizeOf(spec_.dtype);
  if (trip != ColumnTrip::kSums) bytes += sizeof(double);
  return ShareOf(rank).kv_heads.size() * static_cast<size_t>(sums_of_head()) * bytes;
}

TensorView ColumnPass::QueriesOf(const std::byte* asked, size_t head) const {
  const size_t elements = static_cast<size_t>(sums_of_head() * spec_.head_dim);
  return TensorView::Contiguous(asked + head * elements * SizeOf(spec_.dtype), spec_.dtype,
                                queries_.size(), group_, spec_.head_dim);
}

std::vector<ColumnQueries> ColumnPass::QueriesOf(const Share& share, const std::byte* asked,
                                                 float scale) const {
  std::vector<ColumnQueries> queries;
  for (size_t head = 0; head < share.kv_heads.size(); ++head) {
    queries.emplace_back(QueriesOf(asked, head), queries_.begin, kv_tokens_, scale);
  }
  return queries;
}

absl::StatusOr<std::vector<double>> ColumnPass::LogsOf(int rank, const std::byte* asked) const {
  std::vector<double> logs(ShareOf(rank).kv_heads.size() * static_cast<size_t>(sums_of_head()));
  std::memcpy(logs.data(), asked + AskedBytes(rank, ColumnTrip::kSums),
              logs.size() * sizeof(double));
  for (const double log : logs) {
    if (std::isfinite(log)) continue;
    return absl::DataLossError("a column pass brought a sum that is not finite");
  }
  return logs;
}

void ColumnPass::ForEachPart(const Share& share, const Loops& loops,
                             absl::FunctionRef<void(size_t, int64_t, int64_t)> body) const {
  const int64_t blocks = std::ssize(share.blocks);
  const int64_t parts = (blocks + kBlocksOfTask - 1) / kBlocksOfTask;
  loops.Run(parts * std::ssize(share.kv_heads), [&](int64_t task) {
    const int64_t from = task % parts * kBlocksOfTask;
    body(static_cast<size_t>(task / parts), from, std::min(blocks, from + kBlocksOfTask));
  });
}

absl::StatusOr<Buffer> ColumnPass::Sums(int rank, const std::byte* asked, float scale,
                                        const SelectKeys& keys, const Loops& loops) const {
  const Share& share = ShareOf(rank);
  const std::vector<ColumnQueries> queries = QueriesOf(share, asked, scale);
  const auto of_head = static_cast<size_t>(sums_of_head());
  std::vector<ExpSum> sums(of_head * share.kv_heads.size());
  std::mutex mutex;
  absl::Status status;
  ForEachPart(share, loops, [&](size_t head, int64_t from, int64_t to) {
    std::vector<ExpSum> part(of_head);
    const absl::Status ended = queries[head].AddSums(
        keys, share.kv_heads[head], absl::MakeSpan(share.blocks).subspan(from, to - from),
        absl::MakeSpan(part));
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
    for (size_t i = 0; i < of_head; ++i) sums[head * of_head + i].Merge(part[i]);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) return absl::CancelledError("the call was cancelled as queries voted");
  Buffer answer(sums.size() * sizeof(ExpSum));
  std::memcpy(answer.data(), sums.data(), answer.size());
  return answer;
}

absl::StatusOr<Buffer> ColumnPass::Votes(int rank, const std::byte* asked, float scale,
                                         const SelectKeys& keys, const Loops& loops) const {
  const Share& share = ShareOf(rank);
  const auto of_head = static_cast<size_t>(sums_of_head());
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<double> logs, LogsOf(rank, asked));
  const std::vector<ColumnQueries> queries = QueriesOf(share, asked, scale);
  Buffer answer(share.kv_heads.size() * static_cast<size_t>(share.tokens) * sizeof(float));
  auto* const votes = reinterpret_cast<float*>(answer.data());
  std::mutex mutex;
  absl::Status status;
  ForEachPart(share, loops, [&](size_t head, int64_t from, int64_t to) {
    // All blocks before are whole.
    float* const at = votes + static_cast<int64_t>(head) * share.tokens + from * kBlockTokens;
    const absl::Status ended = queries[head].Votes(
        keys, share.kv_heads[head], absl::MakeSpan(share.blocks).subspan(from, to - from),
        absl::MakeSpan(logs).subspan(head * of_head, of_head), at);
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) return absl::CancelledError("the call was cancelled as queries voted");
  return answer;
}

absl::Status ColumnPass::CheckKept(const KeyListData& kept) const {
  const bool fits = kept.unit == KeyListData::Unit::kTokens &&
                    kept.rows == KeyListData::Rows::kAll && kept.heads == spec_.kv_heads &&
                    std::ssize(kept.begin) == spec_.kv_heads + 1 && kept.begin[0] == 0 &&
                    kept.begin.back() == std::ssize(kept.keys) &&
                    std::is_sorted(kept.begin.begin(), kept.begin.end());
  for (int head = 0; fits && head < spec_.kv_heads; ++head) {
    const auto from = kept.keys.begin() + kept.begin[head];
    const auto to = kept.keys.begin() + kept.begin[head + 1];
    const bool ascends = std::adjacent_find(from, to, std::greater_equal<>()) == to;
    if (ascends && (from == to || (*from >= 0 && *(to - 1) < kv_tokens_))) continue;
    return absl::InvalidArgumentError("kept: keys of a head; expected ascending positions of keys");
  }
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "kept: of another shape; expected a list of tokens for each KV head");
}

std::vector<int64_t> ColumnPass::Held(const Share& share, const KeyListData& kept,
                                      int kv_head) const {
  std::vector<int64_t> held;
  auto block = share.blocks.begin();
  for (int64_t i = kept.begin[kv_head]; i < kept.begin[kv_head + 1]; ++i) {
    const int64_t of_key = kept.keys[i] / kBlockTokens;
    block = std::lower_bound(block, share.blocks.end(), of_key);
    if (block == share.blocks.end()) break;
    if (*block == of_key) held.push_back(i);
  }
  return held;
}

absl::StatusOr<Buffer> ColumnPass::KeptRows(int rank, const KeyListData& kept,
                                            const SelectKeys& keys) const {
  ANNULUS_RETURN_IF_ERROR(CheckKept(kept));
  const Share& share = ShareOf(rank);
  const size_t element = SizeOf(spec_.dtype);
  const size_t k_bytes = static_cast<size_t>(spec_.head_dim) * element;
  const size_t v_bytes = RowBytes() - k_bytes;
  std::vector<std::pair<const std::byte*, size_t>> rows;  // in the memory of the pages
  for (const int head : share.kv_heads) {
    for (const int64_t i : Held(share, kept, head)) {
      const KvPage& page = keys.kv->page(head, kept.keys[i] / kBlockTokens);
      const int64_t row = kept.keys[i] % kBlockTokens;
      rows.emplace_back(page.k + static_cast<size_t>(row * page.k_row_stride) * element, k_bytes);
      if (v_bytes == 0) continue;
      rows.emplace_back(page.v + static_cast<size_t>(row * page.v_row_stride) * element, v_bytes);
    }
  }
  size_t bytes = 0;
  for (const auto& [from, size] : rows) bytes += size;
  Buffer answer(bytes);
  std::byte* to = answer.data();
  for (const auto& [from, size] : rows) {
    if (keys.kv->memory() == MemoryKind::kHost) {
      std::memcpy(to, from, size);
    } else {
      ANNULUS_RETURN_IF_ERROR(keys.space->CopyOut(from, to, size));
    }
    to += size;
  }
  return answer;
}

ColumnPass::Merge::Merge(const ColumnPass& pass)
    : of_(pass), sums_(static_cast<size_t>(pass.spec_.kv_heads * pass.sums_of_head())) {}

Buffer ColumnPass::Merge::Ask(int rank, ColumnTrip trip, const TensorView& q) const {
  Buffer asked(of_.AskedBytes(rank, trip));
  if (trip == ColumnTrip::kRows) return asked;
  const auto group = static_cast<int>(of_.group_);
  const std::vector<int>& heads = of_.ShareOf(rank).kv_heads;
  std::byte* at = asked.data();
  for (const int head : heads) {
    at = PackQueryRows(q, 0, q.tokens, {head * group, group}, of_.spec_.dtype, at);
  }
  if (trip == ColumnTrip::kSums) return asked;
  const auto of_head = static_cast<size_t>(of_.sums_of_head());
  for (const int head : heads) {
    std::memcpy(at, logs_.data() + static_cast<size_t>(head) * of_head, of_head * sizeof(double));
    at += of_head * sizeof(double);
  }
  return asked;
}

int64_t ColumnPass::Merge::AnswerBytes(int rank, ColumnTrip trip) const {
  const Share& share = of_.ShareOf(rank);
  const auto heads = std::ssize(share.kv_heads);
  switch (trip) {
    case ColumnTrip::kSums:
      return heads * of_.sums_of_head() * static_cast<int64_t>(sizeof(ExpSum));
    case ColumnTrip::kVotes:
      return heads * share.tokens * static_cast<int64_t>(sizeof(float));
    case ColumnTrip::kDiagonals:
    case ColumnTrip::kSpans:
      return of_.WeightBytes(share, trip);
    case ColumnTrip::kRows:
      break;
  }
  int64_t rows = 0;
  for (const int head : share.kv_heads) rows += std::ssize(of_.Held(share, kept_, head));
  return rows * static_cast<int64_t>(of_.RowBytes());
}

absl::Status ColumnPass::Merge::Add(int rank, ColumnTrip trip, absl::Span<const std::byte> answer) {
  const int64_t expected = AnswerBytes(rank, trip);
  if (std::ssize(answer) != expected) {
    return absl::DataLossError(absl::StrCat("answer of rank ", rank, " to a column pass: ",
                                            answer.size(), " bytes; expected ", expected));
  }
  const Share& share = of_.ShareOf(rank);
  switch (trip) {
    case ColumnTrip::kSums:
      AddSums(share, answer.data());
      break;
    case ColumnTrip::kVotes:
      AddByKey(share, /*lists=*/1, answer.data());
      break;
    case ColumnTrip::kRows:
      AddRows(share, answer.data());
      break;
    case ColumnTrip::kDiagonals:
      AddDiagonals(share, answer.data());
      break;
    case ColumnTrip::kSpans:
      AddSpans(share, answer.data());
      break;
  }
  return absl::OkStatus();
}

void ColumnPass::Merge::AddSums(const Share& share, const std::byte* at) {
  const auto of_head = static_cast<size_t>(of_.sums_of_head());
  for (const int head : share.kv_heads) {
    for (size_t i = 0; i < of_head; ++i, at += sizeof(ExpSum)) {
      ExpSum sum;
      std::memcpy(&sum, at, sizeof sum);
      sums_[static_cast<size_t>(head) * of_head + i].Merge(sum);
    }
  }
}

void ColumnPass::Merge::AddByKey(const Share& share, int64_t lists, const std::byte* at) {
  votes_.resize(static_cast<size_t>(of_.spec_.kv_heads * lists * of_.kv_tokens_));
  for (const int kv_head : share.kv_heads) {
    for (const int64_t block : share.blocks) {
      const int64_t first = block * kBlockTokens;
      const int64_t tokens = std::min(kBlockTokens, of_.kv_tokens_ - first);
      for (int64_t list = kv_head * lists; list < (kv_head + 1) * lists; ++list) {
        std::memcpy(votes_.data() + list * of_.kv_tokens_ + first, at, tokens * sizeof(float));
        at += tokens * sizeof(float);
      }
    }
  }
}

void ColumnPass::Merge::AddRows(const Share& share, const std::byte* at) {
  const size_t k_bytes = static_cast<size_t>(of_.spec_.head_dim) * SizeOf(of_.spec_.dtype);
  const size_t v_bytes = of_.RowBytes() - k_bytes;
  for (const int head : share.kv_heads) {
    for (const int64_t i : of_.Held(share, kept_, head)) {
      const int64_t row = i - kept_.begin[head];
      const auto place = static_cast<size_t>(row * of_.spec_.kv_heads + head);
      std::memcpy(k_.data() + place * k_bytes, at, k_bytes);
      if (v_bytes > 0) std::memcpy(v_.data() + place * v_bytes, at + k_bytes, v_bytes);
      at += of_.RowBytes();
    }
  }
}

absl::Status ColumnPass::Merge::EndSums() {
  logs_.reserve(sums_.size());
  const int64_t rows = of_.queries_.size();
  for (size_t i = 0; i < sums_.size(); ++i) {
    logs_.push_back(sums_[i].Log2());
    if (std::isfinite(logs_.back())) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "q, k: row ", static_cast<int64_t>(i) % rows, ", head ", static_cast<int64_t>(i) / rows,
        " has a score that is not finite or passes 2^28; expected smaller ones"));
  }
  return absl::OkStatus();
}

void ColumnPass::Merge::Choose(const KeepRule& rule) {
  const ContextSpec& spec = of_.spec_;
  kept_.unit = KeyListData::Unit::kTokens;
  kept_.rows = KeyListData::Rows::kAll;
  kept_.heads = spec.kv_heads;
  kept_.begin = {0};
  for (int head = 0; head < spec.kv_heads; ++head) {
    const absl::Span<const float> votes(votes_.data() + head * of_.kv_tokens_,
                                        static_cast<size_t>(of_.kv_tokens_));
    const std::vector<int32_t> keys = KeysKept(votes, rule);
    kept_.keys.insert(kept_.keys.end(), keys.begin(), keys.end());
    kept_.begin.push_back(std::ssize(kept_.keys));
  }
  const int64_t rows = kept_.begin[1];
  k_ = Tensor(spec.dtype, rows, spec.kv_heads, spec.head_dim);
  if (!spec.v_is_k_prefix) v_ = Tensor(spec.dtype, rows, spec.kv_heads, spec.v_head_dim);
}

}  // namespace annulus
