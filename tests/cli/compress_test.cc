// A compressed context over the network: what it answers is what attention over the kept keys does,
// also after a coordinator has started anew and found it at the workers.
#include <signal.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using test::Program;

constexpr int64_t kTokens = 700, kKeep = 100, kRows = 32;
constexpr int kDim = 32;

Tensor Random(Rng& rng, int64_t tokens, int heads) {
  Tensor tensor(DType::kF32, tokens, heads, kDim);
  for (int64_t i = 0; i < tensor.view().size(); ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

std::unique_ptr<Client> Connect(const std::string& endpoint) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.retry = {.attempts_max = 40, .budget = 1000};
  auto client = Client::Connect(options);
  REQUIRE(client.ok());
  return *std::move(client);
}

double WorstOf(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.view().size(); ++i) {
    worst = std::max(worst, std::abs(double{a.f32()[i]} - double{b.f32()[i]}));
  }
  return worst;
}

TEST_CASE("compress: a smaller context answers for the kept keys, after a restart too") {
  auto coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", "127.0.0.1:0", "--log-level", "warning"});
  const std::string endpoint = coordinator->ReadLine().substr(6);
  std::vector<std::unique_ptr<Program>> workers;
  for (int i = 0; i < 3; ++i) {
    workers.push_back(std::make_unique<Program>(
        Arguments{"worker", "--coordinator", endpoint, "--threads", "1"}));
  }
  std::unique_ptr<Client> client = Connect(endpoint);
  const absl::Time begin = absl::Now();
  while (client->Status()->workers.size() < workers.size() &&
         absl::Now() - begin < absl::Seconds(20)) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  Rng rng(411);
  const Tensor k = Random(rng, kTokens, 2), v = Random(rng, kTokens, 2);
  const Tensor q = Random(rng, kRows, 6);
  ContextSpec spec{.heads = 6, .kv_heads = 2, .head_dim = kDim, .v_head_dim = kDim};
  spec.dtype = DType::kF32;
  spec.partition.unit_blocks = 1;
  const ContextId whole = client->CreateContext(spec).value().id;
  const ContextId smaller = client->CreateContext(spec).value().id;
  REQUIRE(client->Append({.context = whole, .k = k, .v = v}).ok());
  CompressRequest request;
  request.context = whole;
  request.q_start = kTokens - kRows;
  request.kv_len = kTokens;
  request.q = q;
  request.rule = {.keep = kKeep, .recent = kRows, .pool_width = 7};
  request.into = smaller;
  const auto compressed = client->Compress(request);
  INFO(compressed.status());
  REQUIRE(compressed.ok());
  CHECK(compressed->tokens == kKeep);
  CHECK(std::ssize(compressed->kept.data->keys) == 2 * kKeep);
  const auto check = [&] {
    const Tensor one = Random(rng, 1, 6);
    AttendRequest attend{.context = smaller, .q_start = kTokens, .kv_len = kKeep, .q = one};
    const auto of_smaller = client->Attend(attend);
    INFO(of_smaller.status());
    REQUIRE(of_smaller.ok());
    attend.context = whole;
    attend.kv_len = kTokens;
    attend.pattern = "list(kept)";
    attend.lists = {compressed->kept};
    const auto of_whole = client->Attend(attend);
    INFO(of_whole.status());
    REQUIRE(of_whole.ok());
    CHECK(WorstOf(of_smaller->out, of_whole->out) < 1e-5);
    CHECK(WorstOf(of_smaller->lse, of_whole->lse) < 1e-5);
  };
  check();
  CHECK(client->Describe(smaller)->kv_bytes * 5 < client->Describe(whole)->kv_bytes);
  coordinator->Signal(SIGKILL);
  coordinator->Wait();
  coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", endpoint, "--log-level", "warning"});
  REQUIRE(coordinator->ReadLine() == absl::StrCat("ready ", endpoint));
  client = Connect(endpoint);
  check();
  request.rule.pool_width = 2;
  CHECK(client->Compress(request).status().message() ==
        "rule.pool_width: 2; expected an odd number");
  for (const ContextId id : {whole, smaller}) {
    CHECK(client->Release(id).ok());  // so that nothing waits to be moved
  }
  for (const auto& worker : workers) worker->Signal(SIGTERM);
  for (const auto& worker : workers) CHECK(worker->Wait().code == 0);
  coordinator->Signal(SIGTERM);
  CHECK(coordinator->Wait().code == 0);
}

}  // namespace
}  // namespace annulus
