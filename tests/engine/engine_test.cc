// The engine executes every plan, and every plan gives the same answer: that of float64 attention.
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/local_ranks.h"
#include "tests/attention/random_list.h"
#include "tests/catch.h"
#include "tests/fake_device.h"

namespace annulus {
namespace {

struct Case {
  int64_t q_tokens, kv_tokens;
  int heads, kv_heads, head_dim, v_head_dim;
  bool v_is_k_prefix;
  std::string pattern;
  std::optional<int64_t> q_start = std::nullopt;
  std::optional<TokenRange> keys = std::nullopt;
  std::vector<NamedList> lists = {};

  Pattern Bound() const {
    absl::StatusOr<Pattern> parsed = Pattern::Parse(pattern, kv_heads);
    INFO(parsed.status().ToString());
    REQUIRE(parsed.ok());
    return parsed->Bind(lists, heads)->KeysFrom(seen().begin);
  }
  TokenRange seen() const { return keys.value_or(TokenRange{0, kv_tokens}); }
};

struct Inputs {
  Tensor q, k, v;
};

Tensor RandomTensor(Rng& rng, int64_t tokens, int64_t heads, int64_t dim) {
  Tensor tensor(DType::kF32, tokens, heads, dim);
  for (int64_t i = 0; i < tokens * heads * dim; ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

Inputs RandomInputs(Rng& rng, const Case& c) {
  return {RandomTensor(rng, c.q_tokens, c.heads, c.head_dim),
          RandomTensor(rng, c.kv_tokens, c.kv_heads, c.head_dim),
          RandomTensor(rng, c.kv_tokens, c.kv_heads, c.v_head_dim)};
}

Problem MakeProblem(const Case& c, int world, Home home, Placement placement,
                    PartitionSpec partition) {
  return Problem{
      .q_tokens = c.q_tokens,
      .q_start = c.q_start,
      .kv_tokens = c.kv_tokens,
      .keys_end = c.seen().end,
      .heads = c.heads,
      .kv_heads = c.kv_heads,
      .head_dim = c.head_dim,
      .v_head_dim = c.v_head_dim,
      .v_is_k_prefix = c.v_is_k_prefix,
      .dtype = DType::kF32,
      .pattern = c.Bound(),
      .home = home,
      .home_partition = partition,
      .kv = Layout::Of(placement, world, c.heads, c.kv_heads, partition, BlocksOf(c.kv_tokens))};
}

float Scale(const Case& c) {
  return 1.0f / std::sqrt(static_cast<float>(c.head_dim));
}

// The whole attention by the float64 oracle.
Partial Oracle(const Case& c, const Inputs& in) {
  absl::StatusOr<std::unique_ptr<Backend>> oracle = MakeBackend("reference", 1);
  REQUIRE(oracle.ok());
  const Pattern pattern = c.Bound();
  const KvTable table = KvTable::FromTensors(in.k, c.v_is_k_prefix ? in.k.view() : in.v.view());
  const BlockSet keys = BlockSet::Range(0, BlocksOf(c.kv_tokens));
  KvTable latent(DType::kF32, 0, c.kv_heads, c.head_dim, c.v_head_dim, BlocksOf(c.kv_tokens));
  for (int64_t b = 0; b < BlocksOf(c.kv_tokens); ++b) {
    for (int h = 0; h < c.kv_heads; ++h) latent.Set(h, b, table.page(h, b));
  }
  Partial partial(c.q_tokens, c.heads, c.v_head_dim);
  AttendArgs args;
  args.q = in.q;
  const int64_t q_start = c.q_start.value_or(c.kv_tokens - c.q_tokens);
  args.q_ranges = {{q_start, q_start + c.q_tokens}};
  args.heads = {0, c.heads};
  args.kv_tokens = c.seen().end;
  args.group = c.heads / c.kv_heads;
  args.kv = &latent;
  args.pattern = &pattern;
  args.keys = &keys;
  args.scale = Scale(c);
  args.into = partial.view();
  const absl::Status status = (*oracle)->Attend(args);
  INFO(status.ToString());
  REQUIRE(status.ok());
  return partial;
}

double FrobeniusError(const Tensor& got, const Tensor& want) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.tokens() * want.heads() * want.dim(); ++i) {
    const double a = got.f32()[i], b = want.f32()[i];
    if (std::isinf(a) && a == b) continue;
    error += (a - b) * (a - b);
    norm += b * b;
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

Buffer InSpace(MemorySpace& space, const Tensor& tensor) {
  return MovedTo(space, Buffer::Copy(tensor.data(), tensor.size_bytes())).value();
}

Partial RunForCaller(const Plan& plan, const Case& c, const Inputs& in, Backend& backend,
                     int64_t* bytes) {
  const Problem& problem = plan.problem();
  MemorySpace& space = backend.memory();
  const Buffer k_bytes = InSpace(space, in.k);
  const Buffer v_bytes = c.v_is_k_prefix ? k_bytes : InSpace(space, in.v);
  KvTable all = KvTable::FromTensors(
      TensorView::Contiguous(k_bytes.data(), DType::kF32, c.kv_tokens, c.kv_heads, c.head_dim),
      TensorView::Contiguous(v_bytes.data(), DType::kF32, c.kv_tokens, c.kv_heads,
                             c.v_is_k_prefix ? c.head_dim : c.v_head_dim));
  auto exchanges = MakeLocalExchanges(plan.world());
  std::vector<absl::StatusOr<RankResult>> results(static_cast<size_t>(plan.world()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.world(); ++rank) {
    threads.emplace_back([&, rank] {
      const HeadRange span = SpanOf(problem.kv.KvHeads(rank));
      KvTable held(problem.dtype, span.first, span.count, c.head_dim, c.v_head_dim,
                   BlocksOf(c.kv_tokens));
      held.set_memory(space.kind());
      for (int64_t b : problem.kv.Blocks(rank).ToVector()) {
        ForEachHead(problem.kv.KvHeads(rank), [&](int h) { held.Set(h, b, all.page(h, b)); });
      }
      RankTask task;
      task.plan = &plan;
      task.rank = rank;
      task.q_packed = Buffer(static_cast<size_t>(QueryBytes(plan, rank)));
      PackQueries(plan, rank, in.q, task.q_packed.data());
      task.kv = &held;
      task.scale = Scale(c);
      results[static_cast<size_t>(rank)] =
          RunRank(task, backend, *exchanges[static_cast<size_t>(rank)]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Partial merged(c.q_tokens, c.heads, c.v_head_dim);
  *bytes = 0;
  for (int rank = 0; rank < plan.world(); ++rank) {
    const auto& result = results[static_cast<size_t>(rank)];
    INFO("rank " << rank << ": " << result.status().ToString());
    REQUIRE(result.ok());
    REQUIRE(MergeAnswer(plan, rank, result->answer_packed, merged.view()).ok());
    *bytes += result->bytes_sent + QueryBytes(plan, rank);
  }
  REQUIRE(Finalise(merged.view()).ok());
  return merged;
}

absl::StatusOr<LocalRun> RunLocally(const Plan& plan, const Case& c, const Inputs& in,
                                    Backend& backend) {
  ANNULUS_ASSIGN_OR_RETURN(const LocalRanks ranks,
                           LocalRanks::Create(plan, in.q, in.k, in.v, backend));
  return ranks.Run(Scale(c));
}

// KV that lies by heads, of weights that need not have to do with the pattern.
Layout RandomHeads(Rng& rng, const Case& c, int world, Placement placement,
                   PartitionSpec partition) {
  std::vector<int64_t> weights;
  for (int head = 0; head < c.kv_heads; ++head) weights.push_back(int64_t{1} << rng.Below(8));
  const int groups = MeshOf(placement, world).head_groups;
  return Layout::Of(placement, world, HeadMap::ByWeight(groups, c.heads, weights), partition,
                    BlocksOf(c.kv_tokens));
}

void CheckAllPlans(const Case& c, const std::vector<int>& worlds, uint64_t seed,
                   Backend* on = nullptr) {
  Rng rng(seed);
  const Inputs in = RandomInputs(rng, c);
  const Partial want = Oracle(c, in);
  absl::StatusOr<std::unique_ptr<Backend>> cpu = MakeBackend("cpu", 2);
  REQUIRE(cpu.ok());
  Backend& backend = on == nullptr ? **cpu : *on;
  const PartitionSpec partitions[] = {
      {PartitionKind::kZigzag, 1},
      {PartitionKind::kContiguous, 1},
      {PartitionKind::kBlockCyclic, static_cast<int64_t>(1 + seed % 3)}};
  for (int world : worlds) {
    for (PlanKind kind : kPlanKinds) {
      for (Home home : {Home::kOwners, Home::kCaller}) {
        const PartitionSpec partition = partitions[rng.Below(3)];
        const Placement placement =
            home == Home::kOwners ? Placement::kTokens : static_cast<Placement>(rng.Below(3));
        const int stages = static_cast<int>(rng.Below(5));
        INFO("seed " << seed << " pattern " << c.pattern << " q " << c.q_tokens << " kv "
                     << c.kv_tokens << " keys " << c.seen().begin << ":" << c.seen().end
                     << " heads " << c.heads << "/" << c.kv_heads << " world " << world << " plan "
                     << std::string(Name(kind)) << " stages " << stages << " partition "
                     << partition.ToString() << " placement " << static_cast<int>(placement)
                     << (home == Home::kCaller ? " for a caller" : " for owners"));
        Problem problem = MakeProblem(c, world, home, placement, partition);
        if (home == Home::kCaller && rng.Below(2) == 0) {
          problem.kv = RandomHeads(rng, c, world, placement, partition);
        }
        absl::StatusOr<Plan> plan = BuildPlan(kind, problem, stages);
        INFO(plan.status().ToString());
        REQUIRE(plan.ok());
        INFO(plan->ToString());
        INFO(plan->Validate().ToString());
        REQUIRE(plan->Validate().ok());
        Partial got;
        int64_t bytes = 0;
        if (home == Home::kOwners) {
          absl::StatusOr<LocalRun> run = RunLocally(*plan, c, in, backend);
          INFO(run.status().ToString());
          REQUIRE(run.ok());
          got = std::move(run->result);
          bytes = run->bytes_moved;
        } else {
          got = RunForCaller(*plan, c, in, backend, &bytes);
        }
        CHECK(bytes == plan->BytesTotal());
        CHECK(FrobeniusError(got.out(), want.out()) < 1e-6);
        CHECK(FrobeniusError(got.lse(), want.lse()) < 1e-6);
      }
    }
  }
}

}  // namespace

TEST_CASE("every plan, world and home gives the oracle's answer and moves the planned bytes") {
  const std::vector<int> worlds = {1, 2, 3, 4, 7};
  CheckAllPlans({700, 700, 4, 2, 16, 16, false, "causal"}, worlds, 1);
  CheckAllPlans({1000, 1000, 4, 4, 16, 24, false, "s2(64,2,4)"}, worlds, 2);
  CheckAllPlans({130, 1100, 6, 3, 8, 8, false, "heads(0: causal; 1: window(100); 2: full)"}, worlds,
                3);
}

TEST_CASE("contexts shorter than a block and than the world, and single queries") {
  const std::vector<int> worlds = {1, 2, 3, 4, 7};
  CheckAllPlans({5, 5, 2, 1, 8, 8, false, "causal"}, worlds, 4);
  CheckAllPlans({1, 1, 2, 2, 8, 8, false, "full"}, worlds, 5);
  CheckAllPlans({1, 1500, 8, 4, 16, 16, false, "s2(64,2,4)"}, worlds, 6);
  CheckAllPlans({70, 130, 4, 2, 8, 8, false, "window(3) | sink(1)"}, worlds, 7);
}

TEST_CASE("rows that see nothing, and V as a prefix of K") {
  CheckAllPlans({200, 300, 2, 1, 16, 16, false, "sink(10) & window(1)"}, {1, 3, 4}, 8);
  CheckAllPlans({150, 400, 4, 1, 32, 24, true, "causal"}, {1, 2, 3, 4}, 9);
}

TEST_CASE("rows that move to balance work come home") {
  const std::vector<int> worlds = {2, 3, 4, 7};
  CheckAllPlans({1500, 1500, 4, 2, 16, 8, false, "docs(1000,100,300,100) & causal"}, worlds, 10);
  CheckAllPlans({400, 1300, 6, 3, 8, 16, false, "heads(0: causal; 1-2: window(64) & causal)"},
                worlds, 11);
}

TEST_CASE("heads and rows that are cut by weight give the oracle's answer") {
  const std::vector<int> worlds = {1, 2, 3, 4, 7};
  CheckAllPlans({2100, 2100, 8, 4, 16, 8, false, "s2(64,2,8,dense_heads=1)"}, worlds, 51);
  CheckAllPlans({1900, 1900, 3, 3, 8, 16, false,
                 "heads(0: causal; 1: window(700) & causal; 2: window(70) & causal)"},
                worlds, 52);
}

// A mask of each row or block, or of all, for all heads, KV heads and query heads.
TEST_CASE("every plan over lists gives the oracle's answer and moves the planned bytes") {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Rng rng(seed);
    const int heads[] = {1, 3, 6, 6};
    RandomList list = MakeRandomList(rng, heads[seed - 1], 800, 800);
    Case c{seed == 2 ? 130 : 800, 800, 6, 3, 16, 8, false, "list(x) & causal"};
    c.lists = {{"x", *KeyList::Make(std::move(list.data))}};
    if (seed == 3) c.pattern = "list(x) & window(300) | sink(3)";
    CheckAllPlans(c, {1, 2, 3, 4, 7}, 40 + seed);
  }
}

TEST_CASE("queries before, among and beyond the keys, which are a part of the context's") {
  const std::vector<int> worlds = {1, 2, 3, 4, 7};
  CheckAllPlans({90, 700, 4, 2, 16, 16, false, "causal", 300}, worlds, 12);
  CheckAllPlans({900, 300, 4, 2, 8, 8, false, "s2(64,2,3)", 200}, worlds, 13);
  CheckAllPlans({70, 500, 4, 4, 8, 16, false, "window(90,30) | sink(3)", 30, {{100, 333}}}, worlds,
                14);
  CheckAllPlans({1, 700, 6, 3, 8, 8, false, "docs(300,200,200) & causal", 5000, {{450, 641}}},
                worlds, 15);
  CheckAllPlans({130, 600, 4, 2, 16, 8, true, "causal", 0, {{65, 66}}}, worlds, 16);
}

// Every byte that the host touches without the memory space is a fault there.
TEST_CASE("every plan runs where a GPU's memory is apart from the host's") {
  test::FakeDeviceBackend device(*MakeBackend("cpu", 2));
  CheckAllPlans({700, 700, 4, 2, 16, 16, false, "causal"}, {1, 2, 3}, 21, &device);
  CheckAllPlans({130, 1100, 6, 3, 8, 8, false, "heads(0: causal; 1: window(100); 2: full)"}, {3},
                22, &device);
  CheckAllPlans({150, 400, 4, 1, 32, 24, true, "s2(64,1,2)"}, {1, 2}, 23, &device);
}

// The same with a GPU, whose merges and copies run there.
TEST_CASE("every plan on a GPU gives the oracle's answer") {
  absl::StatusOr<std::unique_ptr<Backend>> cuda = MakeBackend("cuda", 0);
  if (!cuda.ok()) {
    WARN("skipped: " << cuda.status().message());
    return;
  }
  CheckAllPlans({700, 700, 4, 2, 16, 16, false, "causal"}, {1, 2, 3, 4, 7}, 31, cuda->get());
  CheckAllPlans({1000, 1000, 4, 4, 16, 24, false, "s2(64,2,4)"}, {1, 3, 4}, 32, cuda->get());
  CheckAllPlans({150, 400, 4, 1, 32, 24, true, "causal"}, {1, 2, 3, 4}, 33, cuda->get());
  CheckAllPlans({5, 5, 2, 1, 8, 8, false, "causal"}, {1, 2, 4}, 34, cuda->get());
}

// Few launches: what a race checker can follow.
TEST_CASE("every plan on a GPU, small enough for a race checker") {
  absl::StatusOr<std::unique_ptr<Backend>> cuda = MakeBackend("cuda", 0);
  if (!cuda.ok()) {
    WARN("skipped: " << cuda.status().message());
    return;
  }
  CheckAllPlans({70, 140, 4, 2, 16, 16, false, "causal"}, {2}, 35, cuda->get());
}

TEST_CASE("random problems") {
  const uint64_t base = 1000;
  const char* patterns[] = {"causal",        "full",
                            "window(70,20)", "s2(64,1,3,dense_heads=1)",
                            "power(64,1,1)", "causal & (window(200) | sink(64))",
                            "s2(16,2,5)"};
  for (uint64_t seed = base; seed < base + 12; ++seed) {
    Rng rng(seed);
    const int kv_heads = static_cast<int>(1 + rng.Below(4));
    const int64_t kv_tokens = rng.Between(1, 900);
    const int dim = static_cast<int>(8 * (1 + rng.Below(3)));
    CheckAllPlans(
        {rng.Between(1, kv_tokens), kv_tokens, kv_heads * static_cast<int>(1 + rng.Below(3)),
         kv_heads, dim, static_cast<int>(8 * (1 + rng.Below(3))), false, patterns[rng.Below(7)]},
        {static_cast<int>(1 + rng.Below(7))}, seed);
  }
}

}  // namespace annulus
