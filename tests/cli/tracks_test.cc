// Tracks over the network: rows go straight to the workers or through the service, an index chooses
// by them, and a coordinator that starts anew finds them.
#include <signal.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using test::Program;

constexpr int64_t kTokens = 500, kRows = 40;
constexpr int kIndexHeads = 3, kDim = 32;

Tensor Random(Rng& rng, int64_t tokens, int heads) {
  Tensor tensor(DType::kF32, tokens, heads, kDim);
  for (int64_t i = 0; i < tensor.view().size(); ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

std::unique_ptr<Client> Connect(const std::string& endpoint, Upload upload) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.upload = upload;
  options.retry = {.attempts_max = 40, .budget = 1000};
  auto client = Client::Connect(options);
  REQUIRE(client.ok());
  return *std::move(client);
}

TEST_CASE("tracks: uploads of both kinds choose what the definition does, after a restart too") {
  auto coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", "127.0.0.1:0", "--log-level", "warning"});
  const std::string endpoint = coordinator->ReadLine().substr(6);
  std::vector<std::unique_ptr<Program>> workers;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(std::make_unique<Program>(
        Arguments{"worker", "--coordinator", endpoint, "--threads", "1"}));
  }
  Rng rng(311);
  const Tensor k = Random(rng, kTokens, 2), rows = Random(rng, kTokens, 1);
  const Tensor q = Random(rng, kRows, kIndexHeads);
  std::vector<float> weights;
  for (int64_t i = 0; i < kRows * kIndexHeads; ++i) weights.push_back(rng.Normal());
  const CallList expected =
      test::ReferenceList("dsa(70)", q, kTokens - kRows, rows, kTokens, weights);
  std::vector<std::unique_ptr<Client>> clients;
  clients.push_back(Connect(endpoint, Upload::kDirect));
  clients.push_back(Connect(endpoint, Upload::kRelay));
  const absl::Time begin = absl::Now();
  while (clients[0]->Status()->workers.size() < workers.size() &&
         absl::Now() - begin < absl::Seconds(20)) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  const Tensor gates = Random(rng, kTokens / 16, 2), gate_q = Random(rng, kRows, 2);
  const CallList gated =
      test::ReferenceList("seer(96,16)", gate_q, kTokens - kRows, gates, kTokens);
  std::vector<SelectRequest> selects;
  for (const std::unique_ptr<Client>& client : clients) {
    ContextSpec spec{.layers = 2, .heads = 4, .kv_heads = 2, .head_dim = kDim, .v_head_dim = kDim};
    spec.partition.unit_blocks = 1;
    spec.tracks = {{"index", kDim, DType::kF32},
                   {.name = "gates", .dim = kDim, .dtype = DType::kF32, .heads = 2, .ratio = 16}};
    const auto context = client->CreateContext(spec);
    INFO(context.status());
    REQUIRE(context.ok());
    REQUIRE(context->spec.tracks.at(0).name == "index");
    AppendRequest append{.context = context->id, .layer = 1, .k = k, .v = k};
    REQUIRE(client->Append(append).ok());
    append = {.context = context->id, .layer = TrackLayer(spec, 0, 1), .k = rows};
    const auto appended = client->Append(append);
    INFO(appended.status());
    REQUIRE(appended.ok());
    selects.push_back({.context = context->id,
                       .layer = append.layer,
                       .q_start = kTokens - kRows,
                       .kv_len = kTokens,
                       .q = q,
                       .pattern = "dsa(70)",
                       .weights = weights});
    append = {.context = context->id, .layer = TrackLayer(spec, 1, 1), .k = gates};
    REQUIRE(client->Append(append).ok());
  }
  const auto check = [&] {
    for (size_t i = 0; i < clients.size(); ++i) {
      SelectRequest by_gates = selects[i];
      by_gates.layer = selects[i].layer + 2;  // of two layers
      by_gates.q = gate_q;
      by_gates.pattern = "seer(96,16)";
      by_gates.weights = {};
      const auto blocks = clients[i]->Select(by_gates);
      INFO(blocks.status());
      REQUIRE(blocks.ok());
      CHECK(blocks->lists.at(0).data->keys == gated.data->keys);
      CHECK(blocks->lists.at(0).data->begin == gated.data->begin);
      const auto chosen = clients[i]->Select(selects[i]);
      INFO(chosen.status());
      REQUIRE(chosen.ok());
      CHECK(chosen->lists.at(0).data->keys == expected.data->keys);
      CHECK(chosen->lists.at(0).data->begin == expected.data->begin);
    }
  };
  check();
  coordinator->Signal(SIGKILL);
  coordinator->Wait();
  coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", endpoint, "--log-level", "warning"});
  REQUIRE(coordinator->ReadLine() == absl::StrCat("ready ", endpoint));
  // Old connections may take longer to come back than the service.
  for (std::unique_ptr<Client>& client : clients) client = Connect(endpoint, Upload::kDirect);
  check();
  AttendRequest weighed{.context = selects[0].context, .layer = 1, .kv_len = kTokens};
  const Tensor one = Random(rng, 1, 4);
  weighed.q = one;
  weighed.q_start = kTokens - 1;
  weighed.pattern = "dsa(70)";
  CHECK(absl::IsInvalidArgument(clients[0]->Attend(weighed).status()));
  for (size_t i = 0; i < clients.size(); ++i) {
    CHECK(clients[i]->Release(selects[i].context).ok());  // so that nothing waits to be moved
  }
  for (const auto& worker : workers) worker->Signal(SIGTERM);
  for (const auto& worker : workers) CHECK(worker->Wait().code == 0);
  coordinator->Signal(SIGTERM);
  CHECK(coordinator->Wait().code == 0);
}

}  // namespace
}  // namespace annulus
