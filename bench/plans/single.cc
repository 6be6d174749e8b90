#include "bench/plans/single.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/attend.h"
#include "runtime/engine/packed_pages.h"
#include "runtime/engine/rows.h"
#include "sharding/planner.h"

namespace annulus {
namespace {

// Blocks of the first, small sample.
constexpr int64_t kPilotBlocks = 4;

// Some query blocks of a problem against all of its keys.
class Sample {
 public:
  Sample(const Problem& problem, int64_t blocks)
      : rows_(Spread(problem, blocks), problem.q_range()), keys_(problem.KvBlocks()) {}

  absl::Status Make(const Inputs& inputs, const Problem& problem, float scale, const KvTable& kv,
                    MemorySpace& space, int threads) {
    ANNULUS_ASSIGN_OR_RETURN(q_, MakeQueries(inputs, problem, rows_.ranges(), space, threads));
    ANNULUS_ASSIGN_OR_RETURN(partial_,
                             MakePartial(space, rows_.count(), problem.heads, problem.v_head_dim));
    args_.q = q_.view;
    args_.q_ranges = rows_.ranges();
    args_.heads = {0, problem.heads};
    args_.kv_tokens = problem.keys().end;
    args_.group = problem.group();
    args_.kv = &kv;
    args_.pattern = &problem.pattern;
    args_.keys = &keys_;
    args_.scale = scale;
    args_.into = partial_.view;
    args_.memory = space.kind();
    for (int head = 0; head < problem.kv_heads; ++head) {
      for (const TokenRange& range : rows_.ranges()) {
        work_pairs_ += static_cast<double>(
            problem.pattern.CountPairs(head, range, problem.keys().end).work * problem.group());
      }
    }
    return absl::OkStatus();
  }

  double work_pairs() const { return work_pairs_; }

  absl::StatusOr<double> Seconds(Backend& backend) {
    ANNULUS_RETURN_IF_ERROR(backend.memory().SetIdentity(args_.into));
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(backend.Attend(args_));
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  static BlockSet Spread(const Problem& problem, int64_t count) {
    const std::vector<int64_t> all = problem.QueryBlocks().ToVector();
    const auto n = static_cast<int64_t>(all.size());
    std::vector<int64_t> some;
    for (int64_t i = 0; i < count; ++i) {
      some.push_back(all[static_cast<size_t>((2 * i + 1) * n / (2 * count))]);
    }
    return BlockSet::FromBlocks(some);
  }

  const Rows rows_;
  const BlockSet keys_;
  InputQueries q_;
  PartialBuffer partial_;
  AttendArgs args_;
  double work_pairs_ = 0;
};

}  // namespace

absl::StatusOr<SingleTime> MeasureSingle(const Inputs& inputs, const Problem& problem, float scale,
                                         Backend& backend, int threads, double limit_s,
                                         int repeat) {
  MemorySpace& space = backend.memory();
  const int64_t free_bytes = int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const auto kv_bytes =
      static_cast<int64_t>(PackedBytes(problem, {0, problem.kv_heads}, problem.KvBlocks()));
  const double all = static_cast<double>(SizeOf(problem).work_pairs);
  if (limit_s <= 0 || all == 0 || kv_bytes > free_bytes / 2) return SingleTime{};
  const absl::StatusOr<InputPages> pages =
      MakePages(inputs, problem, {0, problem.kv_heads}, problem.KvBlocks(), space, threads);
  if (absl::IsResourceExhausted(pages.status())) return SingleTime{};  // a GPU's memory is smaller
  ANNULUS_RETURN_IF_ERROR(pages.status());
  const int64_t blocks_max = problem.QueryBlocks().size();

  int64_t blocks = std::min(kPilotBlocks, blocks_max);
  for (;;) {
    Sample sample(problem, blocks);
    ANNULUS_RETURN_IF_ERROR(sample.Make(inputs, problem, scale, pages->table, space, threads));
    ANNULUS_ASSIGN_OR_RETURN(const double first_s, sample.Seconds(backend));
    const double fitting = static_cast<double>(blocks) * limit_s / std::max(first_s, 1e-9);
    const auto more = static_cast<int64_t>(std::min(fitting, static_cast<double>(blocks_max)));
    if (blocks < blocks_max && more >= 2 * blocks) {
      // Samples grow by degrees: the first, cold one tells little.
      blocks = std::min(more, 16 * blocks);
      if (more == blocks_max && 4 * blocks >= blocks_max) blocks = blocks_max;
      continue;
    }
    std::vector<double> seconds;
    double spent_s = 0;
    do {
      ANNULUS_ASSIGN_OR_RETURN(const double s, sample.Seconds(backend));
      seconds.push_back(s);
      spent_s += s;
    } while (static_cast<int>(seconds.size()) < repeat && spent_s < limit_s);
    const double share = sample.work_pairs() / all;
    return SingleTime{MedianOf(std::move(seconds)) / share, share};
  }
}

}  // namespace annulus
