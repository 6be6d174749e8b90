// What the server itself holds a tenant to.
#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/rpc/guarded.h"
#include "tests/rpc/loopback.h"

namespace annulus {
namespace {

StepRequest Query(const std::vector<float>& q) {
  StepRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 2, 8);
  return request;
}

TEST_CASE("a tenant's quota of streams is named when all of them work, and a new file holds") {
  Guarded guarded;
  const auto allow = [&](int streams_max) {
    guarded.Know(TokenEntry("tenant", "tenant"),
                 absl::StrCat(R"({"t-tenant":{"streams_max":)", streams_max, "}}"));
    REQUIRE(guarded.authenticator->Reload().ok());
  };
  allow(1);
  std::atomic<bool> wait{true};
  std::atomic<bool> inside{false};
  guarded.service.before = [&](const char*, const CallContext&) {
    inside = true;
    while (wait) absl::SleepFor(absl::Milliseconds(1));
    return absl::OkStatus();
  };
  const std::vector<float> values = Ramp(64);
  const auto one = guarded.Connect("tenant").value();
  const auto other = guarded.Connect("tenant").value();
  std::thread first([&] { CHECK(one->Step({Query(values)})[0].ok()); });
  while (!inside) absl::SleepFor(absl::Milliseconds(1));
  const StepResults refused = other->Step({Query(values)}, {.timeout = absl::Seconds(1)});
  CHECK(absl::IsResourceExhausted(refused[0].status()));
  CHECK(absl::StrContains(refused[0].status().message(),
                          "streams_max: 1 of tenant \"t-tenant\" and 1 more; expected at most 1"));
  allow(2);
  std::thread second([&] { CHECK(other->Step({Query(values)})[0].ok()); });
  absl::SleepFor(absl::Milliseconds(50));
  wait = false;
  first.join();
  second.join();
}

}  // namespace
}  // namespace annulus
