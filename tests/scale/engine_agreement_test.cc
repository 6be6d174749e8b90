// The simulation against the engine: what every rank posts, in which order, to whom and how large.
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention/backend.h"
#include "bench/scale/script.h"
#include "bench/scale/simulator.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/rows.h"
#include "sharding/work.h"
#include "tests/catch.h"
#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

// What one rank posts: groups of sends and receives, a group a step that moves anything.
struct Posted {
  struct Op {
    int peer = 0;
    int64_t bytes = 0;
    friend bool operator==(const Op&, const Op&) = default;
  };
  std::vector<Op> sends;
  std::vector<Op> receives;
  friend bool operator==(const Posted&, const Posted&) = default;
};
using Log = std::vector<std::vector<Posted>>;  // by rank

class RecordingExchange final : public Exchange {
 public:
  RecordingExchange(std::unique_ptr<Exchange> inner, std::vector<Posted>* log)
      : inner_(std::move(inner)), log_(log) {}

  const Capabilities& capabilities() const override { return inner_->capabilities(); }
  int rank() const override { return inner_->rank(); }
  int world() const override { return inner_->world(); }
  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override {
    Posted posted;
    for (const SendOp& op : sends) {
      posted.sends.push_back({op.peer, static_cast<int64_t>(op.size_bytes)});
    }
    for (const RecvOp& op : receives) {
      posted.receives.push_back({op.peer, static_cast<int64_t>(op.size_bytes)});
    }
    log_->push_back(std::move(posted));
    return inner_->Post(sends, receives);
  }
  absl::Status Wait(Ticket ticket, absl::Time deadline) override {
    return inner_->Wait(ticket, deadline);
  }
  void Abort(absl::Status why) override { inner_->Abort(std::move(why)); }
  Counters counters() const override { return inner_->counters(); }

 private:
  const std::unique_ptr<Exchange> inner_;
  std::vector<Posted>* const log_;
};

Log RunEngine(const Plan& plan, int64_t* bytes) {
  const Problem& problem = plan.problem();
  const Tensor k(problem.dtype, problem.kv_tokens, problem.kv_heads, problem.head_dim);
  const Tensor v(problem.dtype, problem.kv_tokens, problem.kv_heads, problem.v_head_dim);
  const KvTable all = KvTable::FromTensors(k, v);
  const auto backend = *MakeBackend("cpu", 1);
  auto exchanges = MakeLocalExchanges(plan.world());
  Log log(static_cast<size_t>(plan.world()));
  std::vector<absl::StatusOr<RankResult>> results(log.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < log.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const int id = static_cast<int>(rank);
      const HeadRange heads = SpanOf(problem.kv.KvHeads(id));
      KvTable held(problem.dtype, heads.first, heads.count, problem.head_dim, problem.v_head_dim,
                   BlocksOf(problem.kv_tokens));
      for (int64_t b : problem.HeldBlocks(id).ToVector()) {
        for (int h = heads.first; h < heads.end(); ++h) held.Set(h, b, all.page(h, b));
      }
      const Rows rows(plan.HomeRows(id), problem.q_range());
      const Tensor q(problem.dtype, rows.count(), problem.heads, problem.head_dim);
      RecordingExchange exchange(std::move(exchanges[rank]), &log[rank]);
      RankTask task;
      task.plan = &plan;
      task.rank = id;
      task.q = q;
      task.kv = &held;
      results[rank] = RunRank(task, *backend, exchange);
    });
  }
  for (std::thread& thread : threads) thread.join();
  *bytes = 0;
  for (const auto& result : results) {
    INFO(result.status().ToString());
    REQUIRE(result.ok());
    *bytes += result->bytes_sent;
  }
  return log;
}

Log RunSimulation(const Plan& plan, int64_t* bytes) {
  const ClusterModel cluster{.workers_per_node = 2};
  const Script script = Script::Of(plan, ComputeLoads(plan), cluster);
  Log log(static_cast<size_t>(plan.world()));
  *bytes = 0;
  const auto observer = [&](int rank, absl::Span<const uint32_t> sends,
                            absl::Span<const uint32_t> receives) {
    if (sends.empty() && receives.empty()) return;
    Posted posted;
    for (uint32_t i : sends) {
      const Message& message = script.messages()[i];
      posted.sends.push_back({message.destination, message.bytes});
      *bytes += message.bytes;
    }
    for (uint32_t i : receives) {
      const Message& message = script.messages()[i];
      posted.receives.push_back({message.source, message.bytes});
    }
    log[static_cast<size_t>(rank)].push_back(std::move(posted));
  };
  Simulate(script, cluster, observer);
  return log;
}

void CheckAllPlans(int64_t q_tokens, int64_t kv_tokens, const std::string& pattern,
                   PartitionSpec spec) {
  for (int world : {1, 2, 3, 4, 7, 8}) {
    for (PlanKind kind : kPlanKinds) {
      Problem problem = MakeProblem(q_tokens, kv_tokens, 8, 4, world, pattern, spec);
      problem.head_dim = problem.v_head_dim = 16;
      INFO(Describe(problem) << " plan " << std::string(Name(kind)));
      const absl::StatusOr<Plan> plan = BuildPlan(kind, problem);
      REQUIRE(plan.ok());
      int64_t engine_bytes = 0, simulated_bytes = 0;
      const Log engine = RunEngine(*plan, &engine_bytes);
      const Log simulated = RunSimulation(*plan, &simulated_bytes);
      CHECK(simulated_bytes == plan->BytesTotal());
      CHECK(engine_bytes == plan->BytesTotal());
      CHECK((simulated == engine));
    }
  }
}

}  // namespace

TEST_CASE("the simulation posts what the engine posts, for every plan and world") {
  const PartitionSpec zigzag;
  CheckAllPlans(1500, 1500, "causal", zigzag);
  CheckAllPlans(1500, 1500, "s2(64,2,4)", zigzag);
  CheckAllPlans(2000, 2000, "heads(0: causal; 1: window(100); 2-3: full)",
                {PartitionKind::kBlockCyclic, 2});
  CheckAllPlans(1100, 1100, "docs(300,500,300) & causal", {PartitionKind::kContiguous, 1});
}

TEST_CASE("the simulation posts what the engine posts, for chunks, decode and short contexts") {
  const PartitionSpec zigzag;
  CheckAllPlans(1, 2000, "causal", zigzag);
  CheckAllPlans(130, 1500, "s2(64,1,4,dense_heads=1)", {PartitionKind::kBlockCyclic, 1});
  CheckAllPlans(5, 5, "full", zigzag);
  CheckAllPlans(200, 300, "sink(10) & window(1)", zigzag);
}

}  // namespace annulus
