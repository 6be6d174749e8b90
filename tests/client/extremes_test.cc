// What a service says to a query whose scores pass f32's range: the same whatever its workers and
// plan are, and nothing to others of its batch.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int kHeads = 4;
constexpr int kDim = 16;
constexpr int64_t kTokens = 300;

Tensor Normal(uint64_t seed, int64_t tokens, int64_t heads) {
  Rng rng(seed);
  Tensor tensor(DType::kF32, tokens, heads, kDim);
  for (int64_t i = 0; i < tokens * heads * kDim; ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

struct Service {
  Service(int workers, const std::string& backend)
      : client(Client::InProcess({.workers = workers, .backend = backend, .threads = 1}).value()) {}

  // A context of two layers with KV in the second, whose key at 200 is large for KV head 1.
  ContextId Upload() {
    const ContextSpec spec{.layers = 2,
                           .heads = kHeads,
                           .kv_heads = 2,
                           .head_dim = kDim,
                           .v_head_dim = kDim,
                           .dtype = DType::kF32};
    AppendRequest append;
    append.context = client->CreateContext(spec).value().id;
    append.layer = 1;
    Tensor k = Normal(1, kTokens, 2);
    const Tensor v = Normal(2, kTokens, 2);
    std::fill_n(k.f32() + (200 * 2 + 1) * kDim, kDim, 1e20f);
    append.k = k;
    append.v = v;
    REQUIRE(client->Append(append).ok());
    return append.context;
  }

  std::unique_ptr<Client> client;
};

constexpr char kPasses[] =
    ": a score passes f32's range; expected |scale·q·k|, and each sum on the way to it, below "
    "2.3e38, and below 4096 where scores of several parts of the keys tie";

}  // namespace

TEST_CASE("an attend whose scores pass f32's range is refused by context, layer, row and head") {
  for (const std::string backend : {"cpu", "reference"}) {
    for (const int workers : {1, 2, 3}) {
      Service service(workers, backend);
      AttendRequest request;
      request.context = service.Upload();
      request.layer = 1;
      request.q_start = kTokens - 120;
      request.kv_len = kTokens;
      Tensor q = Normal(3, 120, kHeads);
      std::fill_n(q.f32() + (5 * kHeads + 2) * kDim, kDim, 1e25f);  // before the key
      std::fill_n(q.f32() + (90 * kHeads + 2) * kDim, kDim, 1e25f);
      request.q = q;
      std::vector<std::optional<PlanKind>> plans(std::begin(kPlanKinds), std::end(kPlanKinds));
      plans.emplace_back();
      for (const std::optional<PlanKind>& plan : plans) {
        INFO(backend << ", " << workers << " workers, plan "
                     << (plan.has_value() ? std::string(Name(*plan)) : "auto"));
        request.plan = plan;
        const absl::Status status = service.client->Attend(request).status();
        CHECK(status.code() == absl::StatusCode::kInvalidArgument);
        CHECK(status.message() ==
              absl::StrCat("context ", request.context, ", layer 1: q row 90, head 2", kPasses));
      }
    }
  }
}

TEST_CASE("a step whose scores pass f32's range fails alone, and what it appended is taken back") {
  for (const int workers : {1, 3}) {
    CAPTURE(workers);
    Service service(workers, "cpu");
    std::vector<StepRequest> steps(3);
    const Tensor k = Normal(4, 1, 2);
    const Tensor v = Normal(5, 1, 2);
    const Tensor good = Normal(6, 1, kHeads);
    Tensor bad = Normal(7, 1, kHeads);
    std::fill_n(bad.f32() + 3 * kDim, kDim, 1e25f);
    for (StepRequest& step : steps) {
      step.context = service.Upload();
      step.layer = 1;
      step.start = kTokens;
      step.k = k;
      step.v = v;
      step.q = good;
    }
    steps[1].q = bad;
    const StepResults results = service.client->Step(steps);
    REQUIRE(results.size() == 3);
    CHECK(results[0].ok());
    CHECK(results[2].ok());
    CHECK(results[1].status().code() == absl::StatusCode::kInvalidArgument);
    const std::string message(results[1].status().message());
    INFO(message);
    CHECK(message.find(absl::StrCat("layer 1, q row 0, head 3", kPasses)) != std::string::npos);
    // Nothing of it stays; the same step with another query goes on where it was.
    steps[1].q = good;
    const StepResults again = service.client->Step({&steps[1], 1});
    REQUIRE(again.size() == 1);
    INFO(again[0].status().ToString());
    REQUIRE(again[0].ok());
    CHECK(again[0]->tokens == kTokens + 1);
  }
}

}  // namespace annulus
