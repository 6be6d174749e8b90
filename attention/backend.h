// Backend: turns (queries, block list, KV shard) into a partial. One of the three plug-in seams.
// Implementations: cpu (attention/cpu), cuda (attention/cuda), reference (float64 oracle,
// attention/reference); each passes the agreement suite, cases outside its capabilities skipped by
// name.
// A backend is shared by threads: calls may be made concurrently on disjoint outputs.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "attention/block_set.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "attention/partial.h"
#include "attention/pattern.h"
#include "attention/ranges.h"
#include "base/memory_kind.h"
#include "base/thread_pool.h"

namespace annulus {

// One problem: every (query row, query head) of `q` against the keys that the pattern allows among
// the blocks `keys`. Query head h reads KV head h / group.
struct AttendArgs {
  // [rows, heads.count, head_dim], dtype f32 or that of kv. Row r of the tensor is the r-th token
  // of `q_ranges` laid end to end. Positions are absolute; ranges ascend and do not overlap, and a
  // range may begin or end inside a block.
  TensorView q;
  std::vector<TokenRange> q_ranges;
  HeadRange heads;
  int64_t kv_tokens = 0;        // keys at and beyond it do not exist; queries may
  int group = 1;                // query heads per KV head, ≥ 1
  const KvTable* kv = nullptr;  // holds every page of `keys` that the pattern reads
  const Pattern* pattern = nullptr;
  const BlockSet* keys = nullptr;         // KV blocks to visit; others are not read
  float scale = 1.0f;                     // scores are scale·q·k, finite
  PartialView into;                       // [rows, heads.count, v_head_dim]: merged into, in place
  MemoryKind memory = MemoryKind::kHost;  // where q and into lie; kv says it of its pages
  const std::atomic<bool>* cancel = nullptr;  // checked every few ms; may be null
  // How a call takes turns with others, alike in all of a batch. Urgent ones go first, within a ms;
  // the others share the backend evenly among tenants, and a tenant's among owners.
  ThreadPool::Turn turn;
};

struct BackendCapabilities {
  std::string name;    // "cpu", "cuda", "reference"
  std::string detail;  // e.g. the SIMD target chosen: "AVX3_ZEN4"
  std::vector<DType> dtypes;
  int head_dim_max = 0;
  int head_dim_multiple = 1;
  bool device_memory = false;  // also computes on tensors in its GPU's memory
  int gpus = 0;                // that backends of this name on this machine take in turn
  int64_t gpu_bytes = 0;       // of its GPU's memory
};

// How much of a GPU's memory is in use, by whichever processes.
struct DeviceMemory {
  int device = 0;  // as the CUDA runtime counts them
  int64_t bytes = 0;
  int64_t bytes_limit = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const BackendCapabilities& capabilities() const = 0;

  // Solves the problems of a batch together, for example the decode step of many contexts: the work
  // of all is cut into ranges of about the same size, so that contexts of uneven length keep all
  // threads busy. Outputs are disjoint. INVALID_ARGUMENT for shapes outside the capabilities,
  // CANCELLED once *cancel of one of them is true, INTERNAL if a pattern reads a page that its kv
  // does not hold. On error every `into` is unspecified.
  // A row is right, or has no answer as attention/partial.h says: it must not end as if it had not
  // seen a key whose score is NaN or infinite, −∞ included, since sums on the way to a score may
  // overflow too. Keys that a row does not see do it no harm, whatever their scores. A backend may
  // answer rows whose scores fit f32 in spite of sums on the way to them, as float64 does. bf16
  // and f16 subnormals count as they are.
  virtual absl::Status AttendBatch(absl::Span<const AttendArgs> batch) = 0;

  // Whether AttendBatch takes this problem although no list stands for the word that its pattern is
  // (Pattern::selectors): then it chooses the keys itself, those that SelectLocally chooses, and
  // fails with INVALID_ARGUMENT as that does. Callers bring lists for all other such words.
  virtual bool Chooses(const AttendArgs& args) const {
    static_cast<void>(args);
    return false;
  }

  absl::Status Attend(const AttendArgs& args) { return AttendBatch({&args, 1}); }

  // Where tensors and pages should lie for this backend. Lives as long as it.
  virtual MemorySpace& memory() { return HostMemory(); }

  // Its threads, for loops beside attention; null: it has none. Lives as long as it.
  virtual ThreadPool* pool() { return nullptr; }

  // Why it will never compute again, for example since its GPU is lost; OK as long as it can.
  virtual absl::Status health() const { return absl::OkStatus(); }

  // Of the GPU that it computes on; nullopt: it has none, or that does not answer.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
};

// Whether this program was built with the preset cuda, and knows the backend.
bool BuiltWithCuda();

// name: "cpu" (also "auto"), "cuda" (FAILED_PRECONDITION where there is no GPU; "cuda:sm_80" with
// portable kernels alone, for comparison), "reference".
// `threads` compute threads, 0 for one per core, each on its own. `place`: which of the ranks or
// workers on this machine asks; they take its GPUs in turn. INVALID_ARGUMENT names the backends
// that this program knows.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(absl::string_view name, int threads,
                                                     int place = 0);

}  // namespace annulus
