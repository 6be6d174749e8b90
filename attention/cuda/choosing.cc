#include "attention/cuda/choosing.h"

#include <algorithm>
#include <limits>
#include <numbers>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/attend_args.h"
#include "attention/cuda/work_list.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

constexpr size_t kAlign = 256;

bool IsServed(const Selector& word) {
  return word.by_column() == nullptr && !word.index().has_value() &&
         word.summary() == Summary::kMean && word.unit_tokens() % kBlockKeys == 0 &&
         word.picks() <= kChosenPicksMax;
}

bool IsServed(const AttendArgs& args) {
  const int64_t dim = std::max(args.kv->head_dim(), args.kv->v_head_dim());
  return OnMatrixUnits(args) && args.memory == MemoryKind::kDevice &&
         args.kv->memory() == MemoryKind::kDevice && dim <= kChosenDimMax &&
         args.q_ranges.size() == 1 && args.group <= kChosenRows &&
         args.heads.first % args.group == 0 && args.heads.count % args.group == 0 &&
         args.keys->TokenCount(args.kv_tokens) == args.kv_tokens;
}

// Places arrays one after the other: first to learn their size, then in memory of it.
class Arrays {
 public:
  explicit Arrays(std::byte* memory) : memory_(memory) {}
  template <typename T>
  void Place(T*& array, int64_t count) {
    array = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  size_t bytes_ = 0;
};

size_t PlaceAll(std::byte* memory, Chosen& chosen) {
  const int64_t rows = int64_t{chosen.rows} * chosen.problem.heads;
  const int64_t lists = int64_t{chosen.kv_heads} * chosen.units;
  Arrays arrays(memory);
  arrays.Place(chosen.means, lists * chosen.problem.head_dim);
  arrays.Place(chosen.best, rows * (chosen.picks - 1));
  arrays.Place(chosen.unscored, 1);
  arrays.Place(chosen.counts, chosen.chunks() * lists);
  arrays.Place(chosen.tile_count, 1);
  arrays.Place(chosen.tiles, chosen.tiles_max());
  arrays.Place(chosen.entries, chosen.slots());
  return arrays.bytes();
}

}  // namespace

const Selector* ChosenBy(const AttendArgs& args) {
  const Pattern& pattern = *args.pattern;
  if (pattern.selectors().size() != 1 || !pattern.lists().empty() || pattern.first_key() != 0) {
    return nullptr;
  }
  const Selector& word = *pattern.selectors()[0];
  const bool alone = absl::StrReplaceAll(pattern.text(), {{" ", ""}}) == word.name();
  return alone && IsServed(word) && IsServed(args) ? &word : nullptr;
}

absl::Status Choosing::Place(const AttendArgs& args, const Selector& word, TableCache::Kept kept,
                             int64_t slot_bytes) {
  chosen_ = Chosen();
  Problem& problem = chosen_.problem;
  problem.q = args.q.data;
  problem.q_token_stride = args.q.token_stride;
  problem.q_head_stride = args.q.head_stride;
  problem.out = args.into.out;
  problem.lse = args.into.lse;
  problem.kv_tokens = args.kv_tokens;
  problem.kv_heads = args.kv->kv_heads();
  problem.heads = args.heads.count;
  problem.head_dim = args.kv->head_dim();
  problem.v_head_dim = args.kv->v_head_dim();
  problem.q_format = problem.kv_format = FormatOf(args.kv->dtype());
  problem.scale_log2 = args.scale * std::numbers::log2e_v<float>;
  chosen_.q_begin = args.q_ranges[0].begin;
  chosen_.rows = static_cast<int32_t>(args.q.tokens);
  chosen_.group = args.group;
  chosen_.kv_heads = args.heads.count / args.group;
  chosen_.unit_blocks = static_cast<int32_t>(word.unit_tokens() / kBlockKeys);
  chosen_.picks = static_cast<int32_t>(word.picks());
  chosen_.units = static_cast<int32_t>(word.OwnUnit(args.q_ranges[0].end - 1, args.kv_tokens));
  const int64_t row_bytes = int64_t{problem.heads} * chosen_.picks * (2 + problem.v_head_dim) *
                            static_cast<int64_t>(sizeof(float));
  const int64_t fit = std::max<int64_t>(1, slot_bytes / row_bytes / kBlockKeys) * kBlockKeys;
  chosen_.chunk_rows = static_cast<int32_t>(std::min(fit, args.q.tokens));
  ANNULUS_RETURN_IF_ERROR(PlaceTable(args, std::move(kept)));
  ANNULUS_RETURN_IF_ERROR(lists_.Reserve(PlaceAll(nullptr, chosen_)));
  PlaceAll(lists_.data(), chosen_);
  ANNULUS_RETURN_IF_ERROR(
      states_.Reserve(static_cast<size_t>(chosen_.chunk_rows) * static_cast<size_t>(row_bytes)));
  chosen_.states = reinterpret_cast<float*>(states_.data());
  return absl::OkStatus();
}

// The report lies before the table.
absl::Status Choosing::PlaceTable(const AttendArgs& args, TableCache::Kept kept) {
  const KvTable& kv = *args.kv;
  const auto pages = static_cast<size_t>(kv.blocks()) * static_cast<size_t>(kv.kv_heads());
  kept_ = std::move(kept);
  table_bytes_ = kept_ == nullptr ? pages * sizeof(Page) : 0;
  ANNULUS_RETURN_IF_ERROR(table_.Reserve(kAlign + table_bytes_));
  chosen_.report = reinterpret_cast<Report*>(table_.data());
  *chosen_.report = Report();
  const Page* table = nullptr;
  if (kept_ == nullptr) {
    ANNULUS_RETURN_IF_ERROR(pages_.Reserve(table_bytes_));
    auto* page = reinterpret_cast<Page*>(table_.data() + kAlign);
    for (int64_t block = 0; block < kv.blocks(); ++block) {
      for (int head = 0; head < kv.kv_heads(); ++head) {
        const KvPage& at = kv.page(kv.kv_head_first() + head, block);
        *page++ = {at.k, at.v, at.k_row_stride, at.v_row_stride};
      }
    }
    table = reinterpret_cast<const Page*>(pages_.data());
  } else {
    table = reinterpret_cast<const Page*>(kept_->data());
  }
  chosen_.problem.pages = table + args.heads.first / args.group - kv.kv_head_first();
  return absl::OkStatus();
}

absl::Status Choosing::StartChoosing(cudaStream_t stream) {
  if (table_bytes_ > 0) {
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaMemcpyAsync(pages_.data(), table_.data() + kAlign,
                                                     table_bytes_, cudaMemcpyHostToDevice, stream),
                                     "cudaMemcpyAsync"));
  }
  const size_t counts_bytes = sizeof(int32_t) * static_cast<size_t>(chosen_.chunks()) *
                              static_cast<size_t>(chosen_.kv_heads * chosen_.units);
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaMemsetAsync(chosen_.counts, 0, counts_bytes, stream), "cudaMemsetAsync"));
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaMemsetAsync(chosen_.unscored, 0xFF, sizeof(*chosen_.unscored), stream),
               "cudaMemsetAsync"));
  return StatusOf(LaunchChoose(chosen_, stream), "the kernels that choose units");
}

absl::Status Choosing::StartAttending(cudaStream_t stream) {
  for (int chunk = 0; chunk < chosen_.chunks(); ++chunk) {
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchRoute(chosen_, chunk, stream), "the kernels that gather rows by unit"));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchGather(chosen_, chunk, stream), "the kernel of gathered rows"));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchMergeSlots(chosen_, chunk, stream), "the kernel that merges slots"));
  }
  return absl::OkStatus();
}

absl::Status Choosing::Finish(const AttendArgs& args, const Selector& word,
                              cudaStream_t stream) const {
  unsigned long long unscored = 0;
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaMemcpyAsync(&unscored, chosen_.unscored, sizeof(unscored),
                                                   cudaMemcpyDeviceToHost, stream),
                                   "cudaMemcpyAsync"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaStreamSynchronize(stream), "the kernels"));
  if (chosen_.report->missing != 0) {
    return MissingPage(args.heads.first / args.group + chosen_.report->kv_head,
                       chosen_.report->block);
  }
  if (unscored == std::numeric_limits<unsigned long long>::max()) return absl::OkStatus();
  const auto rows = static_cast<unsigned long long>(chosen_.rows);
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: ", word.name(), ": row ", unscored % rows, ", head ",
                   args.heads.first + static_cast<int64_t>(unscored / rows),
                   " scores a unit beyond what f32 holds; expected finite scores"));
}

}  // namespace annulus::cuda
