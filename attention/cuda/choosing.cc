#include "attention/cuda/choosing.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numbers>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/attend_args.h"
#include "attention/cuda/copies.h"
#include "attention/cuda/work_list.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kStopAt = kAlign / 2;
static_assert(sizeof(Report) <= kStopAt);
constexpr int64_t kGatheredQueriesMin = 256;
// A slot takes as long as so many keys of a panel's row, and each of its keys as long as 2.5.
constexpr int64_t kSlotKeys = 600;
constexpr int64_t kRunsLookedAt = 32;
// How often a call that may be cancelled looks whether it was: at first all the time.
constexpr std::chrono::microseconds kPollPeriod{100};
constexpr std::chrono::milliseconds kAwake{2};

bool IsServed(const Selector& word) {
  return word.by_units() && word.causal() && word.summary() == Summary::kMean &&
         word.unit_tokens() % kBlockKeys == 0 && word.picks() <= kChosenPicksMax;
}

bool IsServed(const AttendArgs& args, int64_t unit_tokens) {
  const int64_t dim = std::max(args.kv->head_dim(), args.kv->v_head_dim());
  return OnMatrixUnits(args) && args.kv->memory() == MemoryKind::kDevice && dim <= kChosenDimMax &&
         args.q_ranges.size() == 1 && args.group <= kChosenRows &&
         args.heads.first % args.group == 0 && args.heads.count % args.group == 0 &&
         args.keys->TokenCount(args.kv_tokens) == args.kv_tokens &&
         args.kv_tokens / unit_tokens < kChosenUnitsMax;
}

// The word that is all of the pattern, or null.
const Selector* OnlyWord(const Pattern& pattern) {
  if (pattern.selectors().size() != 1 || pattern.first_key() != 0) return nullptr;
  const Selector& word = *pattern.selectors()[0];
  return absl::StrReplaceAll(pattern.text(), {{" ", ""}}) == word.name() ? &word : nullptr;
}

// The list that stands for the word, or of all that a list and causal say; or null.
const KeyList* OnlyList(const Pattern& pattern) {
  if (pattern.lists().size() != 1 || pattern.first_key() != 0) return nullptr;
  const NamedList& named = pattern.lists()[0];
  const std::string text = absl::StrReplaceAll(pattern.text(), {{" ", ""}});
  const bool alone = text == absl::StrCat("list(", named.name, ")&causal") ||
                     (OnlyWord(pattern) != nullptr && OnlyWord(pattern)->causal() &&
                      named.name == OnlyWord(pattern)->name());
  return alone ? named.list.get() : nullptr;
}

template <typename Fn>
void ForEachRow(const AttendArgs& args, const KeyList& list, Fn&& fn) {
  const TokenRange q = args.q_ranges[0];
  const int64_t first = list.RowOf(q.begin);
  for (int head = args.heads.first; head < args.heads.end(); ++head) {
    for (int64_t i = 0; i < q.size(); ++i) fn(q.begin + i, list.Keys(head, first + i));
  }
}

// The longest row's length, if each query's list is of its own unit and others before, few enough;
// else 0.
int64_t LengthOfRows(const AttendArgs& args, const KeyList& list) {
  size_t longest = 1;
  bool all = true;
  ForEachRow(args, list, [&](int64_t position, absl::Span<const int32_t> keys) {
    longest = std::max(longest, keys.size());
    all = all && !keys.empty() &&
          keys.back() == std::min(position, args.kv_tokens - 1) / list.unit_tokens();
  });
  return all && longest <= kChosenPicksMax ? static_cast<int64_t>(longest) : 0;
}

// Whether 64 neighbours see so much more together than each, as told by some of them, that it takes
// longer to attend to all of that.
bool DifferByQuery(const AttendArgs& args, const KeyList& list) {
  const TokenRange q = args.q_ranges[0];
  const int64_t first = list.RowOf(q.begin), heads = args.heads.count;
  int64_t together = 0, each = 0;
  std::vector<int32_t> seen;
  for (int64_t i = 0; i < kRunsLookedAt; ++i) {
    const int64_t row = (q.size() - kBlockKeys) * (i + 1) / kRunsLookedAt;
    const int head = args.heads.first + static_cast<int>(i * 5 % heads);
    seen.clear();
    for (int64_t r = row; r < row + kBlockKeys; ++r) {
      const absl::Span<const int32_t> keys = list.Keys(head, first + r);
      seen.insert(seen.end(), keys.begin(), keys.end());
    }
    each += static_cast<int64_t>(seen.size());
    std::sort(seen.begin(), seen.end());
    together += std::unique(seen.begin(), seen.end()) - seen.begin();
  }
  const int64_t unit = list.unit_tokens();
  return together * kBlockKeys * unit > each * (unit * 5 / 2 + kSlotKeys);
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

size_t PlaceArrays(std::byte* memory, Chosen& chosen) {
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
  const Selector* word = OnlyWord(*args.pattern);
  if (word == nullptr || !args.pattern->lists().empty()) return nullptr;
  const bool is_served = IsServed(*word) && IsServed(args, word->unit_tokens());
  return is_served ? word : nullptr;
}

const KeyList* GatheredBy(const AttendArgs& args) {
  const KeyList* only = OnlyList(*args.pattern);
  if (only == nullptr || args.q.tokens < kGatheredQueriesMin) return nullptr;
  const KeyList& list = *only;
  const bool is_served =
      list.data().unit == KeyList::Unit::kBlocks && list.data().rows == KeyList::Rows::kToken &&
      list.unit_tokens() % kBlockKeys == 0 && IsServed(args, list.unit_tokens()) &&
      list.heads() == args.group * args.pattern->kv_heads();
  return is_served && DifferByQuery(args, list) && LengthOfRows(args, list) > 0 ? &list : nullptr;
}

absl::Status Choosing::Place(const AttendArgs& args, const Selector& word, TableCache::Kept kept,
                             int64_t slot_bytes) {
  chosen_ = Chosen();
  list_ = ChosenLists();
  chosen_.unit_blocks = static_cast<int32_t>(word.unit_tokens() / kBlockKeys);
  chosen_.picks = static_cast<int32_t>(word.picks());
  return PlaceAll(args, std::move(kept), slot_bytes);
}

absl::Status Choosing::Place(const AttendArgs& args, const KeyList& list, TableCache::Kept kept,
                             int64_t slot_bytes) {
  chosen_ = Chosen();
  list_data_ = list.shared_data();
  chosen_.unit_blocks = static_cast<int32_t>(list.unit_tokens() / kBlockKeys);
  chosen_.picks = static_cast<int32_t>(LengthOfRows(args, list));
  const auto& begin = list_data_->begin;
  const auto& keys = list_data_->keys;
  const size_t begin_bytes = begin.size() * sizeof(begin[0]);
  ANNULUS_RETURN_IF_ERROR(list_room_.Reserve(begin_bytes + keys.size() * sizeof(keys[0])));
  list_.begin = reinterpret_cast<const int64_t*>(list_room_.data());
  list_.keys = reinterpret_cast<const int32_t*>(list_room_.data() + begin_bytes);
  list_.rows = list.rows();
  list_.row_first = list.RowOf(args.q_ranges[0].begin);
  list_.head_first = args.heads.first;
  return PlaceAll(args, std::move(kept), slot_bytes);
}

absl::Status Choosing::PlaceAll(const AttendArgs& args, TableCache::Kept kept, int64_t slot_bytes) {
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
  chosen_.units = static_cast<int32_t>(chosen_.OwnUnit(args.q.tokens - 1));
  const int64_t row_bytes = int64_t{problem.heads} * chosen_.picks * (2 + problem.v_head_dim) *
                            static_cast<int64_t>(sizeof(float));
  const int64_t fit = std::max<int64_t>(1, slot_bytes / row_bytes / kBlockKeys) * kBlockKeys;
  chosen_.chunk_rows = static_cast<int32_t>(std::min(fit, args.q.tokens));
  ANNULUS_RETURN_IF_ERROR(host_rows_.Place(args, &problem));
  for (Event& event : done_) {
    if (event != nullptr) continue;
    ANNULUS_ASSIGN_OR_RETURN(event, MakeEvent());
  }
  ANNULUS_RETURN_IF_ERROR(PlaceTable(args, std::move(kept)));
  ANNULUS_RETURN_IF_ERROR(lists_.Reserve(PlaceArrays(nullptr, chosen_)));
  PlaceArrays(lists_.data(), chosen_);
  ANNULUS_RETURN_IF_ERROR(
      states_.Reserve(static_cast<size_t>(chosen_.chunk_rows) * static_cast<size_t>(row_bytes)));
  chosen_.states = reinterpret_cast<float*>(states_.data());
  return absl::OkStatus();
}

// The report lies before the table, and what stops the kernels behind it.
absl::Status Choosing::PlaceTable(const AttendArgs& args, TableCache::Kept kept) {
  const KvTable& kv = *args.kv;
  const auto pages = static_cast<size_t>(kv.blocks()) * static_cast<size_t>(kv.kv_heads());
  kept_ = std::move(kept);
  table_bytes_ = kept_ == nullptr ? pages * sizeof(Page) : 0;
  ANNULUS_RETURN_IF_ERROR(table_.Reserve(kAlign + table_bytes_));
  chosen_.report = reinterpret_cast<Report*>(table_.data());
  *chosen_.report = Report();
  stop_ = reinterpret_cast<int*>(table_.data() + kStopAt);
  *stop_ = 0;
  chosen_.stop = args.cancel != nullptr ? stop_ : nullptr;
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

absl::Status Choosing::StartLists(cudaStream_t stream) {
  const auto& begin = list_data_->begin;
  const auto& keys = list_data_->keys;
  const size_t begin_bytes = begin.size() * sizeof(begin[0]);
  std::byte* const to = list_room_.data();
  ANNULUS_RETURN_IF_ERROR(CopyAsync(to, begin.data(), begin_bytes, cudaMemcpyHostToDevice, stream));
  ANNULUS_RETURN_IF_ERROR(CopyAsync(to + begin_bytes, keys.data(), keys.size() * sizeof(keys[0]),
                                    cudaMemcpyHostToDevice, stream));
  return StatusOf(LaunchLists(chosen_, list_, stream), "the kernel that takes lists");
}

absl::Status Choosing::StartChoosing(const AttendArgs& args, cudaStream_t stream) {
  ANNULUS_RETURN_IF_ERROR(host_rows_.Bring(args, stream));
  ANNULUS_RETURN_IF_ERROR(CopyAsync(pages_.data(), table_.data() + kAlign, table_bytes_,
                                    cudaMemcpyHostToDevice, stream));
  const size_t counts_bytes = sizeof(int32_t) * static_cast<size_t>(chosen_.chunks()) *
                              static_cast<size_t>(chosen_.kv_heads * chosen_.units);
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaMemsetAsync(chosen_.counts, 0, counts_bytes, stream), "cudaMemsetAsync"));
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaMemsetAsync(chosen_.unscored, 0xFF, sizeof(*chosen_.unscored), stream),
               "cudaMemsetAsync"));
  if (list_.begin != nullptr) return StartLists(stream);
  ANNULUS_RETURN_IF_ERROR(StatusOf(LaunchChoose(chosen_, stream), "the kernels that choose units"));
  if (args.cancel == nullptr) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaEventRecord(done_[0].get(), stream), "cudaEventRecord"));
  return Await(args, done_[0].get());
}

absl::Status Choosing::Await(const AttendArgs& args, cudaEvent_t event) {
  const auto begin = std::chrono::steady_clock::now();
  while (true) {
    const cudaError_t state = cudaEventQuery(event);
    if (state != cudaErrorNotReady) {
      ANNULUS_RETURN_IF_ERROR(StatusOf(state, "the kernels"));
      return IsCancelled(args) ? AttendCancelled() : absl::OkStatus();
    }
    if (IsCancelled(args)) *static_cast<volatile int*>(stop_) = 1;
    if (std::chrono::steady_clock::now() - begin < kAwake) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPollPeriod);
    }
  }
}

absl::Status Choosing::StartAttending(const AttendArgs& args, cudaStream_t stream) {
  for (int chunk = 0; chunk < chosen_.chunks(); ++chunk) {
    cudaEvent_t done = done_[chunk % 2].get();
    if (args.cancel != nullptr && chunk > 1) ANNULUS_RETURN_IF_ERROR(Await(args, done));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchRoute(chosen_, chunk, stream), "the kernels that gather rows by unit"));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchGather(chosen_, chunk, stream), "the kernel of gathered rows"));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(LaunchMergeSlots(chosen_, chunk, stream), "the kernel that merges slots"));
    if (args.cancel == nullptr) continue;
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaEventRecord(done, stream), "cudaEventRecord"));
  }
  return absl::OkStatus();
}

absl::Status Choosing::Finish(const AttendArgs& args, cudaStream_t stream) {
  unsigned long long unscored = 0;
  ANNULUS_RETURN_IF_ERROR(
      CopyAsync(&unscored, chosen_.unscored, sizeof(unscored), cudaMemcpyDeviceToHost, stream));
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaStreamSynchronize(stream), "the kernels"));
  if (chosen_.report->missing != 0) {
    return MissingPage(args.heads.first / args.group + chosen_.report->kv_head,
                       chosen_.report->block);
  }
  if (unscored == std::numeric_limits<unsigned long long>::max()) {
    return host_rows_.Give(args, stream);
  }
  const auto rows = static_cast<unsigned long long>(chosen_.rows);
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: ", OnlyWord(*args.pattern)->name(), ": row ", unscored % rows,
                   ", head ", args.heads.first + static_cast<int64_t>(unscored / rows),
                   " scores a unit beyond what f32 holds; expected finite scores"));
}

}  // namespace annulus::cuda
