#include "sharding/partition.h"

#include <algorithm>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"

namespace annulus {

absl::StatusOr<PartitionSpec> PartitionSpec::Parse(absl::string_view text) {
  if (text == "zigzag") return PartitionSpec{PartitionKind::kZigzag, 1};
  if (text == "contiguous") return PartitionSpec{PartitionKind::kContiguous, 1};
  if (text == "striped") return PartitionSpec{PartitionKind::kBlockCyclic, 1};
  absl::string_view unit = text;
  if (absl::ConsumePrefix(&unit, "block-cyclic:")) {
    int64_t blocks = 0;
    const bool digits = std::all_of(unit.begin(), unit.end(), absl::ascii_isdigit);
    if (digits && absl::SimpleAtoi(unit, &blocks) && blocks >= 1 && blocks <= kUnitBlocksMax) {
      return PartitionSpec{PartitionKind::kBlockCyclic, blocks};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("placement: \"", absl::CHexEscape(text.substr(0, 64)),
                   "\"; expected zigzag, contiguous, striped or block-cyclic:N with N from 1 to ",
                   kUnitBlocksMax));
}

std::string PartitionSpec::ToString() const {
  switch (kind) {
    case PartitionKind::kContiguous:
      return "contiguous";
    case PartitionKind::kZigzag:
      return "zigzag";
    case PartitionKind::kBlockCyclic:
      return absl::StrCat("block-cyclic:", unit_blocks);
  }
  return "unknown";
}

Partition::Partition(PartitionSpec spec, int64_t first_block, int64_t blocks, int world)
    : spec_(spec), first_block_(first_block), blocks_(blocks), world_(world) {
  ANNULUS_CHECK(first_block >= 0 && blocks >= 0 && world >= 1 && spec.unit_blocks >= 1);
  if (spec.kind == PartitionKind::kContiguous) chunks_ = world;
  if (spec.kind == PartitionKind::kZigzag) chunks_ = 2 * static_cast<int64_t>(world);
}

int64_t Partition::ChunkOf(int64_t block) const {
  const int64_t offset = block - first_block_;
  if (chunks_ == 0) return offset / spec_.unit_blocks;
  const int64_t size = blocks_ / chunks_;
  const int64_t in_longer = (blocks_ % chunks_) * (size + 1);
  if (offset < in_longer) return offset / (size + 1);
  return blocks_ % chunks_ + (offset - in_longer) / size;
}

int64_t Partition::ChunkBegin(int64_t chunk) const {
  if (chunks_ == 0) return first_block_ + chunk * spec_.unit_blocks;
  return first_block_ + chunk * (blocks_ / chunks_) + std::min(chunk, blocks_ % chunks_);
}

int Partition::ChunkOwner(int64_t chunk) const {
  if (chunks_ == 0) return static_cast<int>(chunk % world_);
  return static_cast<int>(std::min(chunk, 2 * static_cast<int64_t>(world_) - 1 - chunk));
}

int Partition::Owner(int64_t block) const {
  ANNULUS_CHECK(block >= first_block_ && block < end());
  return ChunkOwner(ChunkOf(block));
}

BlockSet Partition::BlocksOf(int rank) const {
  ANNULUS_CHECK(rank >= 0 && rank < world_);
  if (world_ == 1) return BlockSet::Range(first_block_, blocks_);
  std::vector<BlockRun> runs;
  const auto add_chunk = [&](int64_t chunk) {
    const int64_t begin = ChunkBegin(chunk);
    const int64_t count = std::min(ChunkBegin(chunk + 1), end()) - begin;
    if (count > 0) runs.push_back({begin, count, 1});
  };
  if (chunks_ > 0) {
    add_chunk(rank);
    if (chunks_ > world_) add_chunk(chunks_ - 1 - rank);
    return BlockSet::FromRuns(std::move(runs));
  }
  // Whichever takes fewer runs: one for each chunk, or one for each place within a chunk.
  const int64_t unit = spec_.unit_blocks;
  const int64_t period = unit * world_;
  if (blocks_ / period < unit) {
    for (int64_t chunk = rank; ChunkBegin(chunk) < end(); chunk += world_) add_chunk(chunk);
  } else {
    for (int64_t place = 0; place < unit; ++place) {
      const int64_t first = ChunkBegin(rank) + place;
      const int64_t count = (end() - first + period - 1) / period;
      if (count > 0) runs.push_back({first, count, count > 1 ? period : 1});
    }
  }
  return BlockSet::FromRuns(std::move(runs));
}

void Partition::MarkOwners(BlockRun run, std::vector<bool>* owners) const {
  int64_t block = run.first;
  int64_t stop = std::min(run.last() + 1, end());
  if (block < first_block_) {
    block += (first_block_ - block + run.step - 1) / run.step * run.step;
  }
  if (chunks_ == 0) stop = std::min(stop, block + std::lcm(run.step, spec_.unit_blocks * world_));
  while (block < stop) {
    const int64_t chunk = ChunkOf(block);
    (*owners)[ChunkOwner(chunk)] = true;
    const int64_t left = ChunkBegin(chunk + 1) - block;
    block += (left + run.step - 1) / run.step * run.step;
  }
}

}  // namespace annulus
