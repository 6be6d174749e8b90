// What one batch needs on the device: the work list, and copies of what lies in host memory.
// Reused, so that a warm upload allocates nothing. One thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/cuda/table_cache.h"
#include "attention/cuda/work.h"
#include "attention/cuda/work_list.h"
#include "base/cuda/handles.h"

namespace annulus::cuda {

class Upload {
 public:
  // Finds a place for everything. INTERNAL if a page that the pattern reads is not held (of pages
  // in host memory; of others the kernels report it). `kept`: of each problem the table that is on
  // the device already, or null; may be empty.
  absl::Status Place(absl::Span<const AttendArgs> batch, const WorkList& list,
                     absl::Span<const TableCache::Kept> kept = {});

  // Whether Fill will allocate nothing. What allocates may wait for all kernels that run.
  bool Fits(const WorkList& list) const;

  // Puts everything in its place, in the stream's order. Outputs in host memory that hold nothing
  // yet are not brought.
  absl::Status Fill(absl::Span<const AttendArgs> batch, const WorkList& list, cudaStream_t stream);

  // Asks the kernels to end soon, through a stream of its own.
  absl::Status Stop(cudaStream_t stream);

  // After the kernels: starts what brings back the outputs that lie in host memory.
  absl::Status CopyBack(cudaStream_t stream);

  // Once the stream is done with all that: gives these outputs to the callers.
  absl::Status Finish(absl::Span<const AttendArgs> batch, cudaStream_t stream, Report* report);

  const Work& work() const { return work_; }
  const int32_t* split_tiles() const { return split_tiles_; }

 private:
  // Where an array lies, in bytes from the begin of its memory.
  struct Slot {
    size_t at = 0;
    size_t bytes = 0;
  };
  struct Slots {  // of the whole batch
    Slot problems, tiles, runs, ids, masks, segments, lanes, split_tiles, key_runs, key_sizes,
        flags;
  };
  struct ProblemSlots {
    Slot pages;             // empty if its table is kept
    TableCache::Kept kept;  // until the next Place
    Slot short_maps;        // empty if no kernel of sm_90a reads a short block of it
    Slot q, out, lse;       // empty if they lie on the device
    bool is_new = false;    // no row has seen a key yet: out is not read
  };
  // Rows of a page in host memory that are copied to pages_, without gaps.
  struct Rows {
    const std::byte* from = nullptr;
    int64_t count = 0;
    size_t stride_bytes = 0;
    size_t row_bytes = 0;
    size_t to = 0;
  };
  struct HostPage {
    size_t problem = 0;
    size_t index = 0;  // in its table of pages
    size_t k_at = 0;   // in pages_
    size_t v_at = 0;
    int32_t v_row_stride = 0;  // there
  };

  void PlaceAll(absl::Span<const AttendArgs> batch, const WorkList& list);
  void PlaceOutputs(absl::Span<const AttendArgs> batch);
  void GiveOutputs(const AttendArgs& args, const ProblemSlots& slots) const;
  Slot PlaceBytes(size_t bytes);
  template <typename T>
  void Write(Slot slot, const std::vector<T>& values);
  absl::Status FindHostPages(absl::Span<const AttendArgs> batch, const WorkList& list);
  absl::Status FindHostPage(const AttendArgs& args, size_t problem, int head, int64_t block);
  size_t PlaceRows(const Rows& rows);
  absl::Status CopyHostPages(cudaStream_t stream);
  void WriteTables(absl::Span<const AttendArgs> batch);
  absl::Status WriteShortMaps(const AttendArgs& args, size_t problem);
  void WriteProblem(const AttendArgs& args, size_t problem);
  void WriteKeySizes(const WorkList& list);
  template <typename T>
  const T* OnDevice(Slot slot) const {
    return reinterpret_cast<const T*>(device_.data() + slot.at);
  }

  Work work_;
  const int32_t* split_tiles_ = nullptr;
  PinnedRoom host_;  // lists and tensors, as they lie in device_
  DeviceRoom device_;
  size_t bytes_ = 0;  // used of both
  // [0, up_end_) is brought to the device, [back_, bytes_) comes back.
  size_t up_end_ = 0;
  size_t back_ = 0;
  Slots slots_;
  std::vector<ProblemSlots> problem_slots_;
  DeviceRoom states_;
  PinnedRoom shared_;  // with the kernels, which write their report there
  DeviceRoom pages_;   // copies of pages in host memory
  size_t pages_bytes_ = 0;
  PinnedRoom staging_;  // on their way there
  std::vector<Rows> rows_;
  std::vector<HostPage> host_pages_;
  std::vector<bool> needed_;  // by page of a problem's table; reused
  absl::flat_hash_map<std::pair<const std::byte*, int64_t>, size_t> known_rows_;
};

}  // namespace annulus::cuda
