#include "attention/block_set.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/congruence.h"

namespace annulus {
namespace {

// Pairing runs costs about as much as listing blocks; but a few pairs are always cheaper.
constexpr int64_t kRunPairsMin = 4096;

BlockRun MakeRun(int64_t first, int64_t count, int64_t step) {
  return {first, count, count == 1 ? 1 : step};
}

void AppendIfAny(int64_t first, int64_t count, int64_t step, std::vector<BlockRun>* out) {
  if (count > 0) out->push_back(MakeRun(first, count, step));
}

bool ByFirst(const BlockRun& a, const BlockRun& b) {
  return a.first < b.first;
}

std::vector<int64_t> List(const std::vector<BlockRun>& runs) {
  std::vector<int64_t> blocks;
  for (const BlockRun& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) blocks.push_back(run.first + i * run.step);
  }
  std::sort(blocks.begin(), blocks.end());
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  return blocks;
}

int64_t BlocksIn(const std::vector<BlockRun>& runs) {
  int64_t blocks = 0;
  for (const BlockRun& run : runs) blocks += run.count;
  return blocks;
}

bool PairingIsCheaper(const std::vector<BlockRun>& a, const std::vector<BlockRun>& b) {
  const int64_t pairs = static_cast<int64_t>(a.size() * b.size());
  return pairs <= kRunPairsMin || pairs <= BlocksIn(a) + BlocksIn(b);
}

// `from` less every run of `less`. What is left may be in more and more pieces: then by listing.
std::vector<BlockRun> Difference(std::vector<BlockRun> from, const std::vector<BlockRun>& less) {
  std::vector<BlockRun> rest;
  for (const BlockRun& b : less) {
    if (!PairingIsCheaper(from, less)) {
      const std::vector<int64_t> all = List(from), taken = List(less);
      std::vector<int64_t> left;
      std::set_difference(all.begin(), all.end(), taken.begin(), taken.end(),
                          std::back_inserter(left));
      return BlockSet::FromBlocks(left).runs();
    }
    rest.clear();
    for (const BlockRun& a : from) AppendDifference(a, b, &rest);
    from.swap(rest);
  }
  return from;
}

}  // namespace

BlockRun Intersect(const BlockRun& a, const BlockRun& b) {
  const int64_t low = std::max(a.first, b.first);
  const int64_t high = std::min(a.last(), b.last());
  if (low > high || a.count == 0 || b.count == 0) return {0, 0, 1};
  if (a.step == b.step) {
    if ((a.first - b.first) % a.step != 0) return {0, 0, 1};
    return MakeRun(low, (high - low) / a.step + 1, a.step);
  }
  if (a.step == 1 || b.step == 1) {
    const BlockRun& sparse = a.step == 1 ? b : a;
    const int64_t first = low + FloorMod(sparse.first - low, sparse.step);
    if (first > high) return {0, 0, 1};
    return MakeRun(first, (high - first) / sparse.step + 1, sparse.step);
  }
  const CommonNumbers common = Meet(a.first, a.step, b.first, b.step, low);
  if (!common.found || common.first > high) return {0, 0, 1};
  const int64_t count = static_cast<int64_t>((high - common.first) / common.step) + 1;
  // A step beyond 64 bits leaves one common block, whose step is 1.
  return MakeRun(static_cast<int64_t>(common.first), count, static_cast<int64_t>(common.step));
}

void AppendDifference(const BlockRun& a, const BlockRun& b, std::vector<BlockRun>* out) {
  const BlockRun common = Intersect(a, b);
  if (common.count == 0) return AppendIfAny(a.first, a.count, a.step, out);
  AppendIfAny(a.first, (common.first - a.first) / a.step, a.step, out);
  // Between two common blocks lie `inner` blocks of a: as one run per gap or one per residue,
  // whichever are fewer.
  const int64_t gaps = common.count - 1;
  const int64_t inner = gaps == 0 ? 0 : common.step / a.step - 1;
  if (gaps < inner) {
    for (int64_t g = 0; g < gaps; ++g) {
      AppendIfAny(common.first + g * common.step + a.step, inner, a.step, out);
    }
  } else {
    for (int64_t r = 1; r <= inner; ++r) {
      AppendIfAny(common.first + r * a.step, gaps, common.step, out);
    }
  }
  AppendIfAny(common.last() + a.step, (a.last() - common.last()) / a.step, a.step, out);
}

BlockSet BlockSet::Range(int64_t first, int64_t count) {
  BlockSet set;
  AppendIfAny(first, count, 1, &set.runs_);
  return set;
}

// The longest run that starts at each block not yet taken.
BlockSet BlockSet::FromBlocks(const std::vector<int64_t>& blocks) {
  BlockSet set;
  for (size_t i = 0; i < blocks.size();) {
    size_t end = i + 1;
    const int64_t step = end < blocks.size() ? blocks[end] - blocks[i] : 1;
    while (end < blocks.size() && blocks[end] - blocks[end - 1] == step) ++end;
    // Two far blocks are a run only by chance, and the second may begin a better one.
    if (end - i == 2 && step != 1) end = i + 1;
    set.runs_.push_back(MakeRun(blocks[i], static_cast<int64_t>(end - i), step));
    i = end;
  }
  return set;
}

BlockSet BlockSet::FromRuns(std::vector<BlockRun> runs) {
  BlockSet set;
  std::sort(runs.begin(), runs.end(), ByFirst);
  // Ranges without a step merge by sweeping; only runs with one need arithmetic.
  std::vector<BlockRun> stepped;
  for (const BlockRun& run : runs) {
    if (run.count <= 0) continue;
    if (run.count > 1 && run.step > 1) {
      stepped.push_back(run);
    } else if (!set.runs_.empty() && run.first <= set.runs_.back().last() + 1) {
      BlockRun& back = set.runs_.back();
      back.count = std::max(back.count, run.last() - back.first + 1);
    } else {
      set.runs_.push_back(MakeRun(run.first, run.count, 1));
    }
  }
  if (stepped.empty()) return set;
  if (!PairingIsCheaper(stepped, runs)) return FromBlocks(List(runs));
  for (const BlockRun& run : stepped) {
    const std::vector<BlockRun> rest = Difference({run}, set.runs_);
    set.runs_.insert(set.runs_.end(), rest.begin(), rest.end());
  }
  std::sort(set.runs_.begin(), set.runs_.end(), ByFirst);
  return set;
}

int64_t BlockSet::size() const {
  int64_t size = 0;
  for (const BlockRun& run : runs_) size += run.count;
  return size;
}

bool BlockSet::Contains(int64_t block) const {
  return std::any_of(runs_.begin(), runs_.end(),
                     [block](const BlockRun& run) { return run.Contains(block); });
}

BlockSet BlockSet::Union(const BlockSet& other) const {
  std::vector<BlockRun> runs = runs_;
  runs.insert(runs.end(), other.runs_.begin(), other.runs_.end());
  return FromRuns(std::move(runs));
}

BlockSet BlockSet::Intersect(const BlockSet& other) const {
  if (!PairingIsCheaper(runs_, other.runs_)) {
    const std::vector<int64_t> a = ToVector(), b = other.ToVector();
    std::vector<int64_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    return FromBlocks(both);
  }
  BlockSet set;
  for (const BlockRun& a : runs_) {
    for (const BlockRun& b : other.runs_) {
      const BlockRun both = annulus::Intersect(a, b);
      if (both.count > 0) set.runs_.push_back(both);
    }
  }
  std::sort(set.runs_.begin(), set.runs_.end(), ByFirst);
  return set;
}

BlockSet BlockSet::Subtract(const BlockSet& other) const {
  BlockSet set;
  set.runs_ = Difference(runs_, other.runs_);
  std::sort(set.runs_.begin(), set.runs_.end(), ByFirst);
  return set;
}

bool BlockSet::SameBlocks(const BlockSet& other) const {
  return size() == other.size() && Subtract(other).empty();
}

int64_t BlockSet::TokenCount(int64_t context_tokens) const {
  const int64_t whole = context_tokens / kBlockTokens;
  int64_t tokens = 0;
  for (const BlockRun& run : runs_) {
    if (run.first < whole) {
      tokens += std::min(run.count, (whole - 1 - run.first) / run.step + 1) * kBlockTokens;
    }
    if (run.Contains(whole)) tokens += context_tokens % kBlockTokens;
  }
  return tokens;
}

std::vector<int64_t> BlockSet::ToVector() const {
  return List(runs_);
}

std::string BlockSet::ToString() const {
  std::string text;
  for (const BlockRun& run : runs_) {
    absl::StrAppend(&text, text.empty() ? "[" : " [", run.first);
    if (run.count > 1) absl::StrAppend(&text, "..", run.last());
    if (run.step > 1) absl::StrAppend(&text, " step ", run.step);
    text += ']';
  }
  return text.empty() ? "[]" : text;
}

}  // namespace annulus
