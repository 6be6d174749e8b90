// A column pass by distance.
#include <algorithm>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/column_pass.h"

namespace annulus {

size_t ColumnPass::DiagonalBytes(const Share& share) const {
  return share.kv_heads.size() * share.blocks.size() * static_cast<size_t>(group_ * diagonals()) *
         sizeof(uint64_t);
}

absl::Status ColumnPass::CheckDiagonals() const {
  if (queries_.end > kv_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("q_start: ", queries_.begin, " for ", queries_.size(),
                     " queries; expected positions below kv_len, ", kv_tokens_));
  }
  if (queries_.size() > ColumnQueries::kDiagonalRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens of q: ", queries_.size(), "; expected at most ", ColumnQueries::kDiagonalRowsMax));
  }
  int64_t bytes = 0;
  for (const Share& share : shares_) {
    bytes += static_cast<int64_t>(DiagonalBytes(share)) + std::ssize(share.kv_heads) * group_ *
                                                              share.tokens *
                                                              static_cast<int64_t>(sizeof(float));
  }
  if (bytes <= kSelectBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("kv_len: ", kv_tokens_, " with ", bytes,
                                                 " bytes of weights; expected at most "
                                                 "select_bytes_max, ",
                                                 kSelectBytesMax));
}

absl::StatusOr<Buffer> ColumnPass::Diagonals(int rank, const std::byte* asked, float scale,
                                             const SelectKeys& keys, const Loops& loops) const {
  const Share& share = ShareOf(rank);
  const auto of_head = static_cast<size_t>(sums_of_head());
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<double> logs, LogsOf(rank, asked));
  const std::vector<ColumnQueries> queries = QueriesOf(share, asked, scale);
  const auto blocks = std::ssize(share.blocks);
  Buffer answer(DiagonalBytes(share) + static_cast<size_t>(ColumnBytes(share)));
  auto* const diagonals = reinterpret_cast<uint64_t*>(answer.data());
  auto* const columns = reinterpret_cast<float*>(answer.data() + DiagonalBytes(share));
  std::mutex mutex;
  absl::Status status;
  ForEachPart(share, loops, [&](size_t head, int64_t from, int64_t to) {
    const auto i = static_cast<int64_t>(head);
    // All blocks before are whole.
    const absl::Status ended = queries[head].Diagonals(
        keys, share.kv_heads[head], absl::MakeSpan(share.blocks).subspan(from, to - from),
        absl::MakeSpan(logs).subspan(head * of_head, of_head),
        columns + group_ * (i * share.tokens + from * kBlockTokens),
        diagonals + (i * blocks + from) * group_ * this->diagonals());
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) return absl::CancelledError("the call was cancelled as keys were chosen");
  return answer;
}

void ColumnPass::Merge::AddDiagonals(const Share& share, const std::byte* at) {
  const int64_t group = of_.group_, tokens_all = of_.kv_tokens_, count = of_.diagonals();
  diagonals_.resize(static_cast<size_t>(of_.spec_.heads * tokens_all));
  std::vector<uint64_t> of_block(static_cast<size_t>(count));
  for (const int kv_head : share.kv_heads) {
    for (const int64_t block : share.blocks) {
      const int64_t first = of_.queries_.begin - block * kBlockTokens - kBlockTokens + 1;
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        std::memcpy(of_block.data(), at, of_block.size() * sizeof(uint64_t));
        at += of_block.size() * sizeof(uint64_t);
        uint64_t* const to = diagonals_.data() + head * tokens_all;
        for (int64_t j = std::max<int64_t>(0, -first); j < count; ++j) {
          to[first + j] += of_block[static_cast<size_t>(j)];
        }
      }
    }
  }
  AddByKey(share, group, at);
}

ColumnWeights ColumnPass::Merge::WeightsOf(int head) const {
  const auto tokens = static_cast<size_t>(of_.kv_tokens_), at = static_cast<size_t>(head) * tokens;
  return {absl::MakeConstSpan(votes_).subspan(at, tokens),
          absl::MakeConstSpan(diagonals_).subspan(at, tokens)};
}

KeyListData ColumnPass::Merge::Pick(const ColumnSelector& selector) const {
  KeyListData list;
  list.unit = KeyListData::Unit::kTokens;
  list.rows = KeyListData::Rows::kVerticalSlash;
  list.block_tokens = selector.block_tokens();
  list.heads = of_.spec_.heads;
  list.begin = {0};
  for (int head = 0; head < list.heads; ++head) {
    std::vector<int32_t> verticals, slashes;
    selector.Pick(WeightsOf(head), &verticals, &slashes);
    for (const std::vector<int32_t>* row : {&verticals, &slashes}) {
      list.keys.insert(list.keys.end(), row->begin(), row->end());
      list.begin.push_back(std::ssize(list.keys));
    }
  }
  return list;
}

}  // namespace annulus
