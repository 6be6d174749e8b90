// Which keys of a batch are measured before its launches.
#include <algorithm>

#include "attention/cuda/work_list.h"

namespace annulus::cuda {
namespace {

// Tiles of one KV head for which its keys are measured: for fewer, a look at them costs more than a
// look at their scores.
constexpr int64_t kMeasuredTiles = 8;

}  // namespace

void WorkList::MeasureKeys() {
  key_runs_.clear();
  key_heads_max_ = 0;
  measured_.assign(batch_.size(), false);
  std::vector<int64_t> tiles(batch_.size(), 0);
  for (const Group& group : groups_) {
    const Kernel kernel = group.launch.kernel;
    if (kernel != Kernel::kPanel90 && kernel != Kernel::kSingle90) continue;
    for (const int32_t t : group.tiles) {
      ++tiles[static_cast<size_t>(tiles_[static_cast<size_t>(t)].problem)];
    }
  }
  for (size_t problem = 0; problem < batch_.size(); ++problem) {
    const KvTable& kv = *batch_[problem].kv;
    measured_[problem] = tiles[problem] >= kMeasuredTiles * kv.kv_heads();
    if (!measured_[problem]) continue;
    key_heads_max_ = std::max(key_heads_max_, kv.kv_heads());
    for (const BlockRun& run : batch_[problem].keys->runs()) {
      for (int64_t i = 0; i < run.count; i += kKeyRunBlocks) {
        const int64_t first = run.first + i * run.step;
        if (first >= kv.blocks()) break;
        const int64_t held = (kv.blocks() - 1 - first) / run.step + 1;
        const int64_t count = std::min({run.count - i, held, int64_t{kKeyRunBlocks}});
        key_runs_.push_back({static_cast<int32_t>(problem), static_cast<int32_t>(first),
                             static_cast<int32_t>(run.step), static_cast<int32_t>(count)});
      }
    }
  }
}

}  // namespace annulus::cuda
