#include "attention/cuda/upload.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numbers>

#include "attention/attend_args.h"
#include "attention/cuda/copies.h"
#include "attention/cuda/page_rows.h"
#include "attention/cuda/sm90/tensor_map.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kStagingBytes = size_t{32} << 20;
// Of what is 0 before the kernels: the stop flag, and behind it their counters.
constexpr size_t kCountersAt = kAlign;
constexpr size_t kFlagsBytes = 2 * kAlign;
// Of shared_: the report, and behind it what sets the stop flag.
constexpr size_t kStopperAt = kAlign;
constexpr size_t kSharedBytes = 2 * kAlign;

size_t PagesOf(const KvTable& kv) {
  return static_cast<size_t>(kv.blocks()) * static_cast<size_t>(kv.kv_heads());
}

bool OnHost(const KvTable& kv) {
  return kv.memory() == MemoryKind::kHost;
}

size_t StateBytes(const WorkList& list) {
  return static_cast<size_t>(list.state_floats()) * sizeof(float);
}

}  // namespace

absl::Status Upload::Place(absl::Span<const AttendArgs> batch, const WorkList& list,
                           absl::Span<const TableCache::Kept> kept) {
  problem_slots_.assign(batch.size(), {});
  for (size_t i = 0; i < kept.size(); ++i) problem_slots_[i].kept = kept[i];
  ANNULUS_RETURN_IF_ERROR(FindHostPages(batch, list));
  PlaceAll(batch, list);
  return absl::OkStatus();
}

bool Upload::Fits(const WorkList& list) const {
  return host_.size() >= bytes_ && device_.size() >= bytes_ && states_.size() >= StateBytes(list) &&
         shared_.size() != 0 && pages_.size() >= pages_bytes_ &&
         staging_.size() >= std::min(pages_bytes_, kStagingBytes);
}

absl::Status Upload::Fill(absl::Span<const AttendArgs> batch, const WorkList& list,
                          cudaStream_t stream) {
  ANNULUS_RETURN_IF_ERROR(host_.Reserve(bytes_));
  ANNULUS_RETURN_IF_ERROR(device_.Reserve(bytes_));
  ANNULUS_RETURN_IF_ERROR(states_.Reserve(StateBytes(list)));
  ANNULUS_RETURN_IF_ERROR(shared_.Reserve(kSharedBytes));
  ANNULUS_RETURN_IF_ERROR(CopyHostPages(stream));
  Write(slots_.tiles, list.tiles());
  Write(slots_.runs, list.runs());
  Write(slots_.ids, list.ids());
  Write(slots_.masks, list.masks());
  Write(slots_.segments, list.segments());
  Write(slots_.lanes, list.lanes());
  Write(slots_.split_tiles, list.split_tiles());
  Write(slots_.key_runs, list.key_runs());
  WriteKeySizes(list);
  WriteTables(batch);
  std::memset(host_.data() + slots_.flags.at, 0, kFlagsBytes);
  auto* report = reinterpret_cast<Report*>(shared_.data());
  *report = Report();
  for (size_t i = 0; i < batch.size(); ++i) {
    ANNULUS_RETURN_IF_ERROR(WriteShortMaps(batch[i], i));
    WriteProblem(batch[i], i);
  }
  ANNULUS_RETURN_IF_ERROR(
      CopyAsync(device_.data(), host_.data(), up_end_, cudaMemcpyHostToDevice, stream));
  work_.problems = OnDevice<Problem>(slots_.problems);
  work_.tiles = OnDevice<Tile>(slots_.tiles);
  work_.runs = OnDevice<Run>(slots_.runs);
  work_.ids = OnDevice<int32_t>(slots_.ids);
  work_.masks = OnDevice<uint64_t>(slots_.masks);
  work_.segments = OnDevice<Segment>(slots_.segments);
  work_.lanes = OnDevice<Lane>(slots_.lanes);
  work_.key_runs = OnDevice<KeyRun>(slots_.key_runs);
  work_.key_sizes = const_cast<uint32_t*>(OnDevice<uint32_t>(slots_.key_sizes));
  split_tiles_ = OnDevice<int32_t>(slots_.split_tiles);
  work_.states = reinterpret_cast<float*>(states_.data());
  work_.report = report;
  work_.counters = reinterpret_cast<uint32_t*>(device_.data() + slots_.flags.at + kCountersAt);
  std::fill(std::begin(work_.row_strides), std::end(work_.row_strides), 0);
  std::copy(list.row_strides().begin(), list.row_strides().end(), work_.row_strides);
  const bool may_stop = std::any_of(batch.begin(), batch.end(),
                                    [](const AttendArgs& args) { return args.cancel != nullptr; });
  work_.stop = may_stop ? OnDevice<int>(slots_.flags) : nullptr;
  return absl::OkStatus();
}

Upload::Slot Upload::PlaceBytes(size_t bytes) {
  const Slot slot{bytes_, bytes};
  bytes_ += (bytes + kAlign - 1) / kAlign * kAlign;
  return slot;
}

void Upload::PlaceAll(absl::Span<const AttendArgs> batch, const WorkList& list) {
  const auto place = [this](const auto& values) {
    return PlaceBytes(values.size() * sizeof(values[0]));
  };
  bytes_ = 0;
  slots_.problems = PlaceBytes(batch.size() * sizeof(Problem));
  slots_.tiles = place(list.tiles());
  slots_.runs = place(list.runs());
  slots_.ids = place(list.ids());
  slots_.masks = place(list.masks());
  slots_.segments = place(list.segments());
  slots_.lanes = place(list.lanes());
  slots_.split_tiles = place(list.split_tiles());
  slots_.key_runs = place(list.key_runs());
  slots_.flags = PlaceBytes(kFlagsBytes);
  slots_.key_sizes = PlaceBytes(batch.size() * sizeof(uint32_t));
  for (size_t i = 0; i < batch.size(); ++i) {
    const AttendArgs& args = batch[i];
    ProblemSlots& slots = problem_slots_[i];
    slots.pages = PlaceBytes(slots.kept == nullptr ? PagesOf(*args.kv) * sizeof(Page) : 0);
    const bool maps = list.OnHopper(i) && args.kv_tokens % kBlockTokens != 0;
    slots.short_maps =
        PlaceBytes(maps ? 2 * static_cast<size_t>(args.kv->kv_heads()) * sizeof(CUtensorMap) : 0);
    if (args.memory == MemoryKind::kHost) {
      slots.q = PlaceBytes(static_cast<size_t>(args.q.size()) * SizeOf(args.q.dtype));
    }
  }
  PlaceOutputs(batch);
}

template <typename T>
void Upload::Write(Slot slot, const std::vector<T>& values) {
  if (slot.bytes != 0) std::memcpy(host_.data() + slot.at, values.data(), slot.bytes);
}

absl::Status Upload::FindHostPages(absl::Span<const AttendArgs> batch, const WorkList& list) {
  rows_.clear();
  host_pages_.clear();
  known_rows_.clear();
  pages_bytes_ = 0;
  size_t next = 0;  // tiles lie problem by problem
  for (size_t problem = 0; problem < batch.size(); ++problem) {
    const AttendArgs& args = batch[problem];
    const KvTable& kv = *args.kv;
    needed_.assign(OnHost(kv) ? PagesOf(kv) : 0, false);
    for (; next < list.tiles().size(); ++next) {
      const Tile& tile = list.tiles()[next];
      if (static_cast<size_t>(tile.problem) != problem) break;
      if (!OnHost(kv)) continue;
      for (int32_t r = tile.run_first; r < tile.run_end; ++r) {
        const Run& run = list.runs()[static_cast<size_t>(r)];
        for (int32_t i = 0; i < run.count; ++i) {
          const int64_t block = list.BlockOf(run, i);
          const auto index = static_cast<size_t>(block * kv.kv_heads() + tile.kv_head);
          if (index < needed_.size() && needed_[index]) continue;
          ANNULUS_RETURN_IF_ERROR(FindHostPage(args, problem, tile.kv_head, block));
          needed_[index] = true;
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Upload::FindHostPage(const AttendArgs& args, size_t problem, int head, int64_t block) {
  const KvTable& kv = *args.kv;
  const int kv_head = kv.kv_head_first() + head;
  const KvPage page = block < kv.blocks() ? kv.page(kv_head, block) : KvPage();
  if (page.k == nullptr || page.v == nullptr) return MissingPage(kv_head, block);
  const int64_t count = std::min(args.kv_tokens - block * kBlockTokens, kBlockTokens);
  const size_t element = SizeOf(kv.dtype());
  const auto rows = [&](const std::byte* from, int32_t stride, int dim) {
    return PlaceRows({from, count, static_cast<size_t>(stride) * element,
                      static_cast<size_t>(dim) * element, 0});
  };
  const size_t k_at = rows(page.k, page.k_row_stride, kv.head_dim());
  const bool in_keys = ValuesInKeys(page) && kv.v_head_dim() <= kv.head_dim();
  const size_t v_at = in_keys ? k_at : rows(page.v, page.v_row_stride, kv.v_head_dim());
  host_pages_.push_back({problem, static_cast<size_t>(block * kv.kv_heads() + head), k_at, v_at,
                         in_keys ? kv.head_dim() : kv.v_head_dim()});
  return absl::OkStatus();
}

// The same rows are copied once, however many tables name them.
size_t Upload::PlaceRows(const Rows& rows) {
  const auto shape = static_cast<int64_t>(rows.row_bytes) * (kBlockTokens + 1) + rows.count;
  const auto [known, is_new] = known_rows_.try_emplace({rows.from, shape}, pages_bytes_);
  if (!is_new) return known->second;
  rows_.push_back(rows);
  rows_.back().to = pages_bytes_;
  pages_bytes_ += (static_cast<size_t>(rows.count) * rows.row_bytes + kAlign - 1) / kAlign * kAlign;
  return rows_.back().to;
}

absl::Status Upload::CopyHostPages(cudaStream_t stream) {
  if (rows_.empty()) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(pages_.Reserve(pages_bytes_));
  ANNULUS_RETURN_IF_ERROR(staging_.Reserve(std::min(pages_bytes_, kStagingBytes)));
  size_t begin = 0;  // of what is in the staging memory, in pages_
  size_t end = 0;
  const auto flush = [&]() -> absl::Status {
    ANNULUS_RETURN_IF_ERROR(CopyAsync(pages_.data() + begin, staging_.data(), end - begin,
                                      cudaMemcpyHostToDevice, stream));
    return Wait(stream);
  };
  for (const Rows& rows : rows_) {
    const size_t bytes = static_cast<size_t>(rows.count) * rows.row_bytes;
    if (rows.to + bytes - begin > staging_.size()) {
      ANNULUS_RETURN_IF_ERROR(flush());
      begin = rows.to;
    }
    std::byte* to = staging_.data() + (rows.to - begin);
    for (int64_t i = 0; i < rows.count; ++i) {
      std::memcpy(to + static_cast<size_t>(i) * rows.row_bytes,
                  rows.from + static_cast<size_t>(i) * rows.stride_bytes, rows.row_bytes);
    }
    end = rows.to + bytes;
  }
  return flush();
}

void Upload::WriteTables(absl::Span<const AttendArgs> batch) {
  const auto table = [this](size_t problem) {
    return reinterpret_cast<Page*>(host_.data() + problem_slots_[problem].pages.at);
  };
  for (size_t problem = 0; problem < batch.size(); ++problem) {
    const KvTable& kv = *batch[problem].kv;
    if (problem_slots_[problem].kept != nullptr) continue;
    Page* pages = table(problem);
    if (OnHost(kv)) {
      std::memset(pages, 0, problem_slots_[problem].pages.bytes);
      continue;
    }
    for (int64_t block = 0; block < kv.blocks(); ++block) {
      for (int head = 0; head < kv.kv_heads(); ++head) {
        const KvPage& page = kv.page(kv.kv_head_first() + head, block);
        *pages++ = {page.k, page.v, page.k_row_stride, page.v_row_stride};
      }
    }
  }
  for (const HostPage& page : host_pages_) {
    const KvTable& kv = *batch[page.problem].kv;
    table(page.problem)[page.index] = {pages_.data() + page.k_at, pages_.data() + page.v_at,
                                       kv.head_dim(), page.v_row_stride};
  }
}

// Of K and V of each KV head's last block, which has fewer than 64 rows.
absl::Status Upload::WriteShortMaps(const AttendArgs& args, size_t problem) {
  const ProblemSlots& slots = problem_slots_[problem];
  const KvTable& kv = *args.kv;
  const int64_t block = args.kv_tokens / kBlockTokens;
  if (slots.short_maps.bytes == 0 || block >= kv.blocks()) return absl::OkStatus();
  auto* map = reinterpret_cast<CUtensorMap*>(host_.data() + slots.short_maps.at);
  const auto rows = static_cast<int>(args.kv_tokens % kBlockTokens);
  const auto make = [&](const void* first, int32_t stride, int dim) {
    if (first == nullptr) return absl::OkStatus();
    return StatusOf(sm90::MakeShortMap(first, static_cast<uint64_t>(stride) * SizeOf(kv.dtype()),
                                       dim, rows, map),
                    "the map of a short block");
  };
  for (int head = 0; head < kv.kv_heads(); ++head) {
    Page page{};
    if (OnHost(kv)) {
      page = reinterpret_cast<const Page*>(host_.data() +
                                           slots.pages.at)[block * kv.kv_heads() + head];
    } else {
      const KvPage& own = kv.page(kv.kv_head_first() + head, block);
      page = {own.k, own.v, own.k_row_stride, own.v_row_stride};
    }
    ANNULUS_RETURN_IF_ERROR(make(page.k, page.k_row_stride, kv.head_dim()));
    ++map;
    ANNULUS_RETURN_IF_ERROR(make(page.v, page.v_row_stride, kv.v_head_dim()));
    ++map;
  }
  return absl::OkStatus();
}

// 0 where they are still to be measured, infinity where they are not.
void Upload::WriteKeySizes(const WorkList& list) {
  auto* sizes = reinterpret_cast<float*>(host_.data() + slots_.key_sizes.at);
  for (size_t i = 0; i < problem_slots_.size(); ++i) {
    sizes[i] = list.Measured(i) ? 0.0f : std::numeric_limits<float>::infinity();
  }
}

void Upload::WriteProblem(const AttendArgs& args, size_t index) {
  const ProblemSlots& slots = problem_slots_[index];
  Problem problem;
  problem.pages = slots.kept != nullptr ? reinterpret_cast<const Page*>(slots.kept->data())
                                        : OnDevice<Page>(slots.pages);
  problem.short_maps = OnDevice<CUtensorMap>(slots.short_maps);
  problem.kv_tokens = args.kv_tokens;
  problem.kv_heads = args.kv->kv_heads();
  problem.heads = static_cast<int32_t>(args.into.heads);
  problem.head_dim = args.kv->head_dim();
  problem.v_head_dim = args.kv->v_head_dim();
  problem.q_format = FormatOf(args.q.dtype);
  problem.kv_format = FormatOf(args.kv->dtype());
  problem.scale_log2 = args.scale * std::numbers::log2e_v<float>;
  problem.q = args.q.data;
  problem.q_token_stride = args.q.token_stride;
  problem.q_head_stride = args.q.head_stride;
  problem.out = args.into.out;
  problem.lse = args.into.lse;
  if (args.memory == MemoryKind::kHost) {
    const size_t row_bytes = static_cast<size_t>(args.q.dim) * SizeOf(args.q.dtype);
    std::byte* q = host_.data() + slots.q.at;
    for (int64_t token = 0; token < args.q.tokens; ++token) {
      for (int64_t head = 0; head < args.q.heads; ++head, q += row_bytes) {
        std::memcpy(q, args.q.Row(token, head), row_bytes);
      }
    }
    if (!slots.is_new) {
      std::memcpy(host_.data() + slots.out.at, args.into.out, slots.out.bytes);
    }
    std::memcpy(host_.data() + slots.lse.at, args.into.lse, slots.lse.bytes);
    problem.q = OnDevice<std::byte>(slots.q);
    problem.q_token_stride = args.q.heads * args.q.dim;
    problem.q_head_stride = args.q.dim;
    problem.out = const_cast<float*>(OnDevice<float>(slots.out));
    problem.lse = const_cast<float*>(OnDevice<float>(slots.lse));
  }
  std::memcpy(host_.data() + slots_.problems.at + index * sizeof(Problem), &problem,
              sizeof(Problem));
}

absl::Status Upload::Stop(cudaStream_t stream) {
  int* stop = reinterpret_cast<int*>(shared_.data() + kStopperAt);
  *stop = 1;
  return CopyAsync(device_.data() + slots_.flags.at, stop, sizeof(int), cudaMemcpyHostToDevice,
                   stream);
}

}  // namespace annulus::cuda
