// Lists that a service chooses, over the network and within a process: the same. Calls that bring
// them answer as those that choose by themselves.
#include "annulus/client.h"

#include <cmath>

#include "base/rng.h"
#include "tests/catch.h"
#include "tests/data/data_cluster.h"

namespace annulus::test {
namespace {

Tensor Random(Rng& rng, int64_t tokens, int64_t heads, int64_t dim) {
  Tensor tensor(DType::kF32, tokens, heads, dim);
  for (int64_t i = 0; i < tensor.view().size(); ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

TEST_CASE("Select answers alike by whichever way it goes, in one piece or in many") {
  constexpr int64_t kTokens = 2000, kRows = 500;
  DataCluster cluster({.workers = 3});
  Rng rng(95);
  const Tensor k = Random(rng, kTokens, 2, 16), v = Random(rng, kTokens, 2, 16);
  const Tensor q = Random(rng, kRows, 4, 16);
  std::vector<std::unique_ptr<Client>> clients;
  clients.push_back(cluster.Connect(Upload::kDirect));
  clients.push_back(Client::InProcess({.workers = 2, .backend = "cpu", .threads = 1}).value());
  std::vector<SelectResult> chosen;
  for (const std::unique_ptr<Client>& client : clients) {
    const ContextId id =
        client->CreateContext({.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16})
            .value()
            .id;
    REQUIRE(client->Append({.context = id, .k = k, .v = v}).ok());
    const std::string pattern = "causal & (window(9) | quest(512) | moba(64,5))";
    auto lists = client->Select(
        {.context = id, .q_start = kTokens - kRows, .kv_len = kTokens, .q = q, .pattern = pattern});
    INFO(lists.status());
    REQUIRE(lists.ok());
    REQUIRE(lists->lists.size() == 2);
    AttendRequest attend{
        .context = id, .q_start = kTokens - kRows, .kv_len = kTokens, .q = q, .pattern = pattern};
    const auto by_itself = client->Attend(attend);
    attend.lists = lists->lists;
    const auto with_lists = client->Attend(attend);
    REQUIRE(by_itself.ok());
    REQUIRE(with_lists.ok());
    CHECK(std::equal(by_itself->out.data(), by_itself->out.data() + by_itself->out.size_bytes(),
                     with_lists->out.data()));
    chosen.push_back(*std::move(lists));
  }
  for (size_t i = 0; i < 2; ++i) {
    CHECK(chosen[0].lists[i].name == chosen[1].lists[i].name);
    CHECK(chosen[0].lists[i].data->keys == chosen[1].lists[i].data->keys);
    CHECK(chosen[0].lists[i].data->begin == chosen[1].lists[i].data->begin);
  }
  CHECK(chosen[0].lists[1].data->size_bytes() > (int64_t{1} << 18));
}

TEST_CASE("index queries go with an Attend and a Step by whichever way, in one piece or in many") {
  constexpr int64_t kTokens = 700, kRows = 300;
  DataCluster cluster({.workers = 2});
  Rng rng(96);
  const Tensor k = Random(rng, kTokens, 2, 16), v = Random(rng, kTokens, 2, 16);
  const Tensor rows = Random(rng, kTokens, 1, 32), q = Random(rng, kRows, 4, 16);
  const Tensor index_q = Random(rng, kRows, 3, 32);
  std::vector<float> weights(kRows * 3);
  for (float& weight : weights) weight = rng.Normal();
  std::vector<std::unique_ptr<Client>> clients;
  clients.push_back(cluster.Connect(Upload::kDirect));
  clients.push_back(Client::InProcess({.workers = 3, .backend = "cpu", .threads = 1}).value());
  for (const std::unique_ptr<Client>& client : clients) {
    ContextSpec spec{.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16};
    spec.dtype = DType::kF32;
    spec.tracks = {{"index", 32, DType::kF32}};
    const ContextId id = client->CreateContext(spec).value().id;
    const int track = TrackLayer(spec, 0, 0);
    REQUIRE(client->Append({.context = id, .k = k, .v = v}).ok());
    REQUIRE(client->Append({.context = id, .layer = track, .k = rows}).ok());
    const auto lists = client->Select({.context = id,
                                       .layer = track,
                                       .q_start = kTokens - kRows,
                                       .kv_len = kTokens,
                                       .q = index_q,
                                       .pattern = "dsa(40)",
                                       .weights = weights});
    REQUIRE(lists.ok());
    AttendRequest attend{.context = id, .q_start = kTokens - kRows, .kv_len = kTokens, .q = q};
    attend.pattern = "dsa(40)";
    attend.index = {.layer = track, .q = index_q, .weights = weights};
    const auto by_itself = client->Attend(attend);
    INFO(by_itself.status());
    REQUIRE(by_itself.ok());
    StepRequest step;
    step.context = id;
    step.start = kTokens;
    step.q = q;
    step.pattern = "dsa(40)";
    step.index = attend.index;
    const StepResults stepped = client->Step({&step, 1});
    INFO(stepped[0].status());
    REQUIRE(stepped[0].ok());
    attend.index = {};
    attend.lists = lists->lists;
    const auto with_lists = client->Attend(attend);
    REQUIRE(with_lists.ok());
    CHECK(std::equal(by_itself->out.data(), by_itself->out.data() + by_itself->out.size_bytes(),
                     with_lists->out.data()));
    for (int64_t i = 0; i < q.view().size(); ++i) {
      REQUIRE(std::abs(stepped[0]->out.f32()[i] - with_lists->out.f32()[i]) < 1e-6);
    }
    step.index.q.tokens = 1;
    CHECK(client->Step({&step, 1})[0].status().message() ==
          "requests[0].index.q.tokens: 1; expected q.tokens, 300");
  }
}

TEST_CASE("a list with a handle is sent once, and again to a service that has no room for it") {
  constexpr int64_t kTokens = 3000;
  const int64_t cache_bytes = GENERATE(int64_t{1} << 26, int64_t{0});
  CoordinatorLimits limits;
  limits.list_cache_bytes = cache_bytes;
  DataCluster cluster({.workers = 2, .limits = limits});
  const std::unique_ptr<Client> client = cluster.Connect(Upload::kRelay);
  Rng rng(96);
  const ContextId id =
      client->CreateContext({.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16})
          .value()
          .id;
  const Tensor k = Random(rng, kTokens, 2, 16), v = Random(rng, kTokens, 2, 16);
  REQUIRE(client->Append({.context = id, .k = k, .v = v}).ok());
  KeyListData data;
  data.unit = KeyListData::Unit::kTokens;
  for (int32_t key = 0; key < kTokens; key += 2) data.keys.push_back(key);
  data.begin = {0, static_cast<int64_t>(data.keys.size())};
  const CallList list = {"x", std::make_shared<const KeyListData>(data), NewListHandle()};
  const Tensor q = Random(rng, 8, 4, 16);
  AttendRequest attend{.context = id,
                       .q_start = kTokens - 8,
                       .kv_len = kTokens,
                       .q = q,
                       .pattern = "causal & list(x)",
                       .lists = {{"x", list.data}}};
  const auto expected = client->Attend(attend);
  REQUIRE(expected.ok());
  attend.lists = {list};
  for (int i = 0; i < 5; ++i) {
    const auto got = client->Attend(attend);
    INFO(got.status());
    REQUIRE(got.ok());
    CHECK(
        std::equal(got->out.data(), got->out.data() + got->out.size_bytes(), expected->out.data()));
  }
  for (int64_t at = kTokens; at < kTokens + 5; ++at) {
    const Tensor more_k = Random(rng, 1, 2, 16), more_v = Random(rng, 1, 2, 16);
    const Tensor one = Random(rng, 1, 4, 16);
    const StepRequest step{.context = id,
                           .start = at,
                           .k = more_k,
                           .v = more_v,
                           .q = one,
                           .pattern = "list(x)",
                           .lists = {list}};
    const StepResults stepped = client->Step({&step, 1});
    INFO(stepped[0].status());
    REQUIRE(stepped[0].ok());
    CHECK(stepped[0]->tokens == at + 1);
  }
}

}  // namespace
}  // namespace annulus::test
