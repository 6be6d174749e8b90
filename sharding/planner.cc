#include "sharding/planner.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <string>
#include <utility>

#include "base/status.h"
#include "sharding/build.h"
#include "sharding/row_table.h"

namespace annulus {
namespace {

struct ComputeLoad {
  int64_t work_pairs = 0;
  int64_t tokens_read = 0;  // of one KV head each, pages that some row reads
};

// Sums over KV blocks of how many queries read them and whether any does, weighted by tokens.
class BlockSums {
 public:
  explicit BlockSums(const RowTable& rows)
      : rows_(rows), reads_(rows.kv_blocks()), below_(static_cast<size_t>(rows.kv_blocks()) + 1) {}

  // Turns to these rows.
  void Reset(int class_index, const BlockSet& q_blocks) {
    reads_.AddRows(rows_, class_index, q_blocks);
    const std::vector<int64_t>& counts = reads_.Finish();
    for (size_t b = 0; b < counts.size(); ++b) {
      const int64_t begin = static_cast<int64_t>(b) * kBlockTokens;
      const int64_t tokens = std::min(kBlockTokens, rows_.kv_tokens() - begin);
      below_[b + 1].work_pairs = below_[b].work_pairs + counts[b] * tokens;
      below_[b + 1].tokens_read = below_[b].tokens_read + (counts[b] > 0 ? tokens : 0);
    }
  }

  ComputeLoad Over(const BlockSet& kv_blocks) const {
    ComputeLoad sum;
    for (const BlockRun& run : kv_blocks.runs()) {
      // A run without a step is the difference of two sums.
      const int64_t length = run.step == 1 ? run.count : 1;
      for (int64_t i = 0; i < run.count; i += length) {
        const int64_t begin = run.first + i * run.step;
        const ComputeLoad &low = below_[begin], &high = below_[begin + length];
        sum.work_pairs += high.work_pairs - low.work_pairs;
        sum.tokens_read += high.tokens_read - low.tokens_read;
      }
    }
    return sum;
  }

 private:
  const RowTable& rows_;
  ReadCounts reads_;
  std::vector<ComputeLoad> below_;  // over blocks [0, b)
};

// The loads of all computes of some plans of one problem. Computes on the same rows, in one plan or
// several, share the sums over what those rows read: that is nearly all of the cost of planning.
class Loads {
 public:
  Loads(const Problem& problem, const RowTable& rows, ThreadPool& pool)
      : problem_(problem), rows_(rows), pool_(pool) {}

  void Add(const Plan& plan) {
    for (const Step& step : plan.steps()) {
      for (const Compute& compute : step.computes) {
        computes_of_[compute.q_blocks.ToString()].push_back(&compute);
      }
    }
  }

  // Of every compute added.
  std::map<const Compute*, ComputeLoad> Finish() {
    std::vector<Item> items;
    for (const auto& [rows, computes] : computes_of_) {
      for (int c = 0; c < rows_.classes(); ++c) {
        const bool any = std::any_of(computes.begin(), computes.end(), [&](const Compute* compute) {
          return HeadsOfClass(*compute, c).first > 0;
        });
        if (any) items.push_back({&computes, c, {}});
      }
    }
    std::atomic<size_t> next{0};
    pool_.ParallelFor(pool_.threads(), [&](int64_t) {
      BlockSums sums(rows_);
      for (size_t i = next++; i < items.size(); i = next++) Weigh(&sums, &items[i]);
    });
    std::map<const Compute*, ComputeLoad> loads;
    for (const Item& item : items) {
      for (size_t i = 0; i < item.loads.size(); ++i) {
        ComputeLoad& load = loads[(*item.computes)[i]];
        load.work_pairs += item.loads[i].work_pairs;
        load.tokens_read += item.loads[i].tokens_read;
      }
    }
    return loads;
  }

 private:
  struct Item {  // computes on the same rows, for one class of heads
    const std::vector<const Compute*>* computes;
    int class_index;
    std::vector<ComputeLoad> loads;
  };

  void Weigh(BlockSums* sums, Item* item) const {
    sums->Reset(item->class_index, item->computes->front()->q_blocks);
    for (const Compute* compute : *item->computes) {
      const auto [heads, kv_heads] = HeadsOfClass(*compute, item->class_index);
      ComputeLoad load;
      if (heads > 0) load = sums->Over(compute->kv_blocks);
      item->loads.push_back({load.work_pairs * heads, load.tokens_read * kv_heads});
    }
  }

  // How many query heads and KV heads of a class a compute has.
  std::pair<int, int> HeadsOfClass(const Compute& compute, int class_index) const {
    int heads = 0, kv_heads = 0, last = -1;
    for (int head = compute.heads.first; head < compute.heads.end(); ++head) {
      if (rows_.QueryClass(head) != class_index) continue;
      ++heads;
      if (head / problem_.group() != last) ++kv_heads;
      last = head / problem_.group();
    }
    return {heads, kv_heads};
  }

  const Problem& problem_;
  const RowTable& rows_;
  ThreadPool& pool_;
  std::map<std::string, std::vector<const Compute*>> computes_of_;  // by their rows
};

// What one step asks of one rank, or of the caller.
class StepLoad {
 public:
  void AddCompute(const ComputeLoad& load) {
    compute_.work_pairs += load.work_pairs;
    compute_.tokens_read += load.tokens_read;
  }
  void AddMessage(bool sends, bool inside, int64_t bytes) {
    Link& link = links_[(sends ? 2 : 0) + (inside ? 1 : 0)];
    link.bytes += bytes;
    ++link.messages;
  }

  double ComputeSeconds(const Problem& problem, const ClusterModel& cluster) const {
    const double dims = problem.head_dim + problem.v_head_dim;
    const double stored_dims = problem.v_is_k_prefix ? problem.head_dim : dims;
    const double bytes = static_cast<double>(compute_.tokens_read) * stored_dims *
                         static_cast<double>(SizeOf(problem.dtype));
    return std::max(2.0 * static_cast<double>(compute_.work_pairs) * dims / cluster.flops,
                    bytes / cluster.read_bytes_per_s);
  }
  double CommSeconds(const ClusterModel& cluster) const {
    double slowest = 0;
    for (size_t i = 0; i < links_.size(); ++i) {
      const bool inside = i % 2 == 1;
      const double rate = inside ? cluster.inside_bytes_per_s : cluster.between_bytes_per_s;
      const double latency = inside ? cluster.inside_latency_s : cluster.between_latency_s;
      slowest = std::max(
          slowest, static_cast<double>(links_[i].bytes) / rate + links_[i].messages * latency);
    }
    return slowest;
  }

 private:
  struct Link {
    int64_t bytes = 0;
    int messages = 0;
  };
  ComputeLoad compute_;
  std::array<Link, 4> links_;
};

bool Inside(int a, int b, int world, const ClusterModel& cluster) {
  if (cluster.workers_per_node >= world) return true;
  if (a == kCaller || b == kCaller) return false;
  return a / cluster.workers_per_node == b / cluster.workers_per_node;
}

PlanCost CostWith(const Plan& plan, const ClusterModel& cluster,
                  const std::map<const Compute*, ComputeLoad>& loads) {
  const Problem& problem = plan.problem();
  PlanCost cost;
  cost.kind = plan.kind();
  for (int rank = 0; rank < plan.world(); ++rank) {
    cost.workers.push_back(
        {.worker = rank, .kv_tokens = problem.HeldBlocks(rank).TokenCount(problem.kv_tokens)});
  }
  for (const Step& step : plan.steps()) {
    std::vector<StepLoad> ends(static_cast<size_t>(plan.world()) + 1);  // kCaller first
    for (const Transfer& t : step.transfers) {
      const int64_t bytes = plan.Bytes(t);
      const bool inside = Inside(t.source, t.destination, plan.world(), cluster);
      ends[t.source + 1].AddMessage(true, inside, bytes);
      ends[t.destination + 1].AddMessage(false, inside, bytes);
      if (t.source != kCaller) cost.workers[t.source].bytes_sent += bytes;
      if (t.destination != kCaller) cost.workers[t.destination].bytes_received += bytes;
      cost.bytes_total += bytes;
    }
    for (const Compute& compute : step.computes) {
      const ComputeLoad& load = loads.at(&compute);
      ends[compute.rank + 1].AddCompute(load);
      cost.workers[compute.rank].work_pairs += load.work_pairs;
    }
    double compute_s = 0, step_s = 0;
    for (const StepLoad& end : ends) {
      compute_s = std::max(compute_s, end.ComputeSeconds(problem, cluster));
      step_s = std::max({step_s, compute_s, end.CommSeconds(cluster)});
    }
    cost.compute_s += compute_s;
    cost.cost_s += step_s;
  }
  cost.exposed_comm_s = cost.cost_s - cost.compute_s;
  int64_t most = 0;
  double total = 0;
  for (const WorkerLoad& worker : cost.workers) {
    most = std::max(most, worker.work_pairs);
    total += static_cast<double>(worker.work_pairs);
  }
  if (most > 0) cost.imbalance = static_cast<double>(most) * plan.world() / total;
  return cost;
}

}  // namespace

ProblemSize SizeOf(const Problem& problem) {
  std::map<int, PairCount> by_class;
  ProblemSize size;
  for (int head = 0; head < problem.kv_heads; ++head) {
    const auto [at, is_new] = by_class.try_emplace(problem.pattern.HeadClass(head));
    if (is_new) at->second = problem.pattern.CountPairs(head, problem.q_range(), problem.kv_tokens);
    size.visited_pairs += at->second.visited * problem.group();
    size.work_pairs += at->second.work * problem.group();
  }
  size.density = static_cast<double>(size.visited_pairs) /
                 (static_cast<double>(problem.heads) * static_cast<double>(problem.q_tokens) *
                  static_cast<double>(problem.kv_tokens));
  return size;
}

PlanCost Cost(const Plan& plan, const ClusterModel& cluster) {
  ThreadPool pool(PlanningThreads(plan.problem()));
  const RowTable rows(plan.problem(), pool);
  Loads loads(plan.problem(), rows, pool);
  loads.Add(plan);
  return CostWith(plan, cluster, loads.Finish());
}

absl::StatusOr<Decision> Choose(const Problem& problem, const ClusterModel& cluster,
                                std::optional<PlanKind> asked) {
  ANNULUS_RETURN_IF_ERROR(CheckProblem(problem));
  ThreadPool pool(PlanningThreads(problem));
  const RowTable rows(problem, pool);
  constexpr int64_t kKinds = std::size(kPlanKinds);
  std::vector<std::optional<Plan>> plans(kKinds);
  // The costliest to build are last in kPlanKinds, and are to be begun first.
  pool.ParallelFor(kKinds, [&](int64_t i) {
    const int64_t at = kKinds - 1 - i;
    plans[at] = BuildChecked(kPlanKinds[at], problem, &rows);
  });
  Loads loads(problem, rows, pool);
  for (const std::optional<Plan>& plan : plans) loads.Add(*plan);
  const std::map<const Compute*, ComputeLoad> load_of = loads.Finish();

  std::vector<PlanCost> candidates;
  for (const std::optional<Plan>& plan : plans) {
    candidates.push_back(CostWith(*plan, cluster, load_of));
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const PlanCost& a, const PlanCost& b) { return a.cost_s < b.cost_s; });
  const PlanKind kind = asked.value_or(candidates.front().kind);
  const auto chosen = std::find_if(plans.begin(), plans.end(),
                                   [kind](const auto& plan) { return plan->kind() == kind; });
  return Decision{*std::move(*chosen), std::move(candidates)};
}

}  // namespace annulus
