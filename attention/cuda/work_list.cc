#include "attention/cuda/work_list.h"

#include <algorithm>
#include <utility>

namespace annulus::cuda {
namespace {

// Query rows of a problem whose list is worth being kept.
constexpr int64_t kKeptRows = 512;
// Tables whose rows' places are remembered.
constexpr size_t kPageRowsMax = 1 << 14;
// Elements; the copy engine's own bound is far beyond.
constexpr int64_t kRowStrideMax = 1 << 24;
int DimOf(const KvTable& kv) {
  return DimFor(std::max(kv.head_dim(), kv.v_head_dim()));
}

// Beyond what kStream and the panels do.
bool IsWide(const KvTable& kv) {
  return DimOf(kv) > kNarrowDimMax;
}

// Whether kernels of sm_90a for `dim` take rows of `own`: as boxes of 64 columns that lie within.
bool HasBoxes(int own, int dim) {
  return own == dim || (own >= 64 && own < dim && dim <= kBoxedDimMax);
}

// Whether all queries of a KV head are one half of a tile.
bool IsOneHalf(const AttendArgs& args) {
  if (args.q_ranges.size() != 1) return false;
  const TokenRange& q = args.q_ranges[0];
  const int64_t heads = std::min(args.group, args.heads.count);
  return q.begin / kBlockTokens == (q.end - 1) / kBlockTokens && q.size() * heads <= kPanelRows;
}

// Scales with which unseen keys weigh nothing and scores of f16 stay in f32's range.
constexpr float kScaleMin = 1e-25f;
constexpr float kScaleMax = 1e25f;

}  // namespace

bool OnMatrixUnits(const AttendArgs& args) {
  return args.kv->dtype() != DType::kF32 && args.q.dtype == args.kv->dtype() &&
         args.scale >= kScaleMin && args.scale <= kScaleMax;
}

Format FormatOf(DType dtype) {
  if (dtype == DType::kF32) return Format::kF32;
  return dtype == DType::kF16 ? Format::kF16 : Format::kBF16;
}

bool WorkList::Keeps(absl::Span<const AttendArgs> batch, const Slots& slots) {
  return key_.has_value() && batch.size() == 1 && key_->AsksTheSame(batch[0]) &&
         key_->Fits(batch[0], slots, PageRowsFor(*batch[0].kv));
}

void WorkList::Make(absl::Span<const AttendArgs> batch, const Slots& slots) {
  batch_ = batch;
  if (Keeps(batch, slots)) return;
  key_.reset();
  MakeAll(slots);
  if (batch.size() == 1 && batch[0].q.tokens >= kKeptRows) {
    key_.emplace(batch[0], slots, PageRowsFor(*batch[0].kv));
  }
}

void WorkList::MakeAll(const Slots& slots) {
  tiles_.clear();
  tile_blocks_.clear();
  runs_.Clear();
  segments_.clear();
  lanes_.clear();
  launches_.clear();
  split_tiles_.clear();
  groups_.clear();
  row_strides_.clear();
  on_hopper_.assign(batch_.size(), false);
  split_rows_max_ = split_dim_max_ = 0;
  state_floats_ = 0;
  for (problem_ = 0; problem_ < std::ssize(batch_); ++problem_) {
    AddProblem(batch_[static_cast<size_t>(problem_)], slots);
  }
  MeasureKeys();
  next_state_.assign(tiles_.size(), 0);
  for (Group& group : groups_) {
    group.launch.slots = slots.Of(group.launch.kernel, group.launch.dim);
    if (group.launch.kernel == Kernel::kStream) {
      CutLanes(&group);
    } else {
      Cut(&group);
    }
    launches_.push_back(group.launch);
  }
}

// Which one does what kStream does not.
Kernel WorkList::PanelFor(const AttendArgs& args, const Slots& slots) {
  const KvTable& kv = *args.kv;
  const int dim = DimOf(kv);
  const bool single = IsOneHalf(args) && slots.Of(Kernel::kSingle90, dim) != 0;
  const Kernel kernel = IsWide(kv) ? Kernel::kLatent90
                        : single   ? Kernel::kSingle90
                                   : Kernel::kPanel90;
  const Kernel portable = IsWide(kv) ? Kernel::kWide : Kernel::kPanel;
  if (!HasBoxes(kv.head_dim(), dim) || !HasBoxes(kv.v_head_dim(), ValueDimOf(dim)) ||
      slots.Of(kernel, dim) == 0) {
    return portable;
  }
  const PageRows& rows = PageRowsFor(kv);
  if (IsWide(kv) && !rows.values_in_keys) return portable;
  if (!AddRowStrides(rows, std::min(kv.head_dim(), kv.v_head_dim()))) return portable;
  // Queries that the copy engine cannot read are copied by threads.
  const int64_t stride =
      args.memory == MemoryKind::kHost ? args.q.heads * args.q.dim : args.q.token_stride;
  const bool aligned = stride % 8 == 0 && args.q.head_stride % 8 == 0 && stride >= args.q.dim &&
                       stride <= kRowStrideMax;
  const auto end = row_strides_.end();
  if (aligned && row_strides_.size() < kRowStrides &&
      std::find(row_strides_.begin(), end, static_cast<int32_t>(stride)) == end) {
    row_strides_.push_back(static_cast<int32_t>(stride));
  }
  return kernel;
}

// A decode step finds most of its tables as the step before left them.
const PageRows& WorkList::PageRowsFor(const KvTable& kv) {
  if (page_rows_.size() >= kPageRowsMax) page_rows_.clear();
  const auto [known, is_new] = page_rows_.try_emplace(kv.stamp());
  if (is_new) known->second = PageRowsOf(kv);
  return known->second;
}

// Whether the copy engine can read these rows, and there is room for their strides.
bool WorkList::AddRowStrides(const PageRows& rows, int dim) {
  const size_t before = row_strides_.size();
  bool room = true;
  for (const int32_t stride : rows.strides) {
    if (std::find(row_strides_.begin(), row_strides_.end(), stride) != row_strides_.end()) continue;
    // The copy engine counts in 16 bytes.
    room = room && stride >= dim && stride % 8 == 0 && stride <= kRowStrideMax;
    row_strides_.push_back(stride);
  }
  room = room && row_strides_.size() <= kRowStrides;
  if (!room) row_strides_.resize(before);
  return room;
}

void WorkList::AddProblem(const AttendArgs& args, const Slots& slots) {
  const int kv_head_first = args.heads.first / args.group;
  const int kv_head_end = (args.heads.end() - 1) / args.group + 1;
  waiting_.resize(static_cast<size_t>(kv_head_end));
  queries_.clear();
  runs_.ForgetRanges();
  panel_.reset();
  int64_t row = 0;
  for (const TokenRange& range : args.q_ranges) {
    for (int64_t begin = range.begin; begin < range.end;) {
      const int64_t end = std::min(range.end, (begin / kBlockTokens + 1) * kBlockTokens);
      classes_.clear();
      for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
        const HeadRange heads = Intersect({kv_head * args.group, args.group}, args.heads);
        if (!args.pattern->by_query_head()) {
          AddQueries(args, slots, heads, static_cast<int32_t>(row),
                     QueriesOf(args, kv_head, {begin, end}));
          continue;
        }
        for (int head = heads.first; head < heads.end(); ++head) {
          queries_.push_back({{begin, end}, {}, {}});
          See(args, args.pattern->Member(head % args.group), kv_head, &queries_.back());
          AddQueries(args, slots, {head, 1}, static_cast<int32_t>(row), queries_.back());
        }
      }
      row += end - begin;
      begin = end;
    }
  }
  for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
    AddWaiting(args, slots, kv_head);
  }
}

// What queries of one block see under a KV head, as one of the same class has seen it.
const Queries& WorkList::QueriesOf(const AttendArgs& args, int kv_head, TokenRange q) {
  const int head_class = args.pattern->HeadClass(kv_head);
  for (const auto& [known, queries] : classes_) {
    if (known == head_class) return *queries;
  }
  queries_.push_back({q, {}, {}});
  See(args, *args.pattern, kv_head, &queries_.back());
  classes_.push_back({head_class, &queries_.back()});
  return queries_.back();
}

// `heads`: of one KV head.
void WorkList::AddQueries(const AttendArgs& args, const Slots& slots, HeadRange heads,
                          int32_t row_first, const Queries& queries) {
  if (queries.empty()) return;
  const int kv_head = heads.first / args.group;
  const auto tokens = static_cast<int>(queries.q.size());
  Kernel kernel = Kernel::kSimple;
  if (OnMatrixUnits(args)) {
    const bool few = tokens * heads.count <= kStreamRows && !IsWide(*args.kv);
    // A decode step does not look at all pages of its context.
    if (!few && !panel_.has_value()) panel_ = PanelFor(args, slots);
    kernel = few ? Kernel::kStream : *panel_;
    if (slots.Of(kernel, DimOf(*args.kv)) == 0) kernel = Kernel::kSimple;
  }
  const int step = std::max(1, kPanelRows / tokens);
  const auto halves = static_cast<size_t>(HalvesOf(kernel, DimOf(*args.kv)));
  std::vector<Waiting>& waiting = waiting_[static_cast<size_t>(kv_head)];
  if (halves > 1 && !waiting.empty() &&
      !std::all_of(waiting.begin(), waiting.end(), [&](const Waiting& other) {
        return other.queries == &queries || TileRuns::Alike(*other.queries, queries);
      })) {
    AddWaiting(args, slots, kv_head);
  }
  for (int head = heads.first; head < heads.end(); head += step) {
    Half half;
    half.row_first = row_first;
    half.tokens = static_cast<int16_t>(tokens);
    half.head_first = head - args.heads.first;
    half.heads = static_cast<int16_t>(std::min(step, heads.end() - head));
    half.mask_row = static_cast<int16_t>(queries.q.begin % kBlockTokens);
    if (halves == 1) {
      AddTile(args, kv_head, kernel, {{half, &queries}});
      continue;
    }
    waiting.push_back({half, &queries});
    if (waiting.size() < halves) continue;
    AddTile(args, kv_head, kernel, waiting);
    waiting.clear();
  }
}

// Those that wait in vain. One that shares its list with no other is a tile of its own.
void WorkList::AddWaiting(const AttendArgs& args, const Slots& slots, int kv_head) {
  std::vector<Waiting>& waiting = waiting_[static_cast<size_t>(kv_head)];
  if (waiting.empty()) return;
  const bool alone = waiting.size() == 1 && waiting[0].queries->scattered() &&
                     *panel_ == Kernel::kPanel90 &&
                     slots.Of(Kernel::kSingle90, DimOf(*args.kv)) != 0;
  AddTile(args, kv_head, alone ? Kernel::kSingle90 : *panel_, waiting);
  waiting.clear();
}

void WorkList::AddTile(const AttendArgs& args, int kv_head, Kernel kernel,
                       absl::Span<const Waiting> halves) {
  Launch launch;
  launch.kernel = kernel;
  if (kernel != Kernel::kSimple) {
    launch.format = FormatOf(args.kv->dtype());
    launch.dim = DimOf(*args.kv);
  }
  auto group = std::find_if(groups_.begin(), groups_.end(),
                            [&](const Group& g) { return g.launch.SameKernel(launch); });
  if (group == groups_.end()) group = groups_.insert(group, Group{launch, {}});
  group->tiles.push_back(static_cast<int32_t>(tiles_.size()));
  if (IsHopper(kernel)) on_hopper_[static_cast<size_t>(problem_)] = true;
  Tile tile;
  tile.problem = problem_;
  tile.kv_head = kv_head - args.kv->kv_head_first();
  const Queries* queries[kHalves];
  for (size_t h = 0; h < halves.size(); ++h) {
    tile.half[h] = halves[h].half;
    queries[h] = halves[h].queries;
  }
  const TileRuns::Range runs = runs_.Add(args.kv_tokens, {queries, halves.size()});
  tile.run_first = runs.first;
  tile.run_end = runs.end;
  tile.masked = runs.masked;
  tiles_.push_back(tile);
  tile_blocks_.push_back(runs.blocks);
}

void WorkList::See(const AttendArgs& args, const Pattern& pattern, int kv_head, Queries* queries) {
  pattern.Row(kv_head, queries->q, args.kv_tokens, &row_);
  common_.clear();
  for (const TileRun& seen : row_) {
    for (const BlockRun& keys : args.keys->runs()) {
      if (keys.step == 1 && keys.first <= seen.blocks.first && seen.blocks.last() <= keys.last()) {
        common_.push_back(seen);  // as good as always, and soon said
        break;
      }
      const BlockRun common = Intersect(seen.blocks, keys);
      if (common.count != 0) common_.push_back({common, seen.full});
    }
  }
  runs_.AddSeen(pattern, kv_head, common_, queries);
}

}  // namespace annulus::cuda
