// A Compress through a real server over loopback to a fake service.
#include "tests/rpc/loopback.h"

namespace annulus {
namespace {

TEST_CASE("a compression says what it asks, and is answered what was kept") {
  Loopback loopback;
  const Tensor q(DType::kF32, 700, 4, 64);  // more than a message takes
  CompressRequest request;
  request.context = 3;
  request.layer = 2;
  request.q_start = 5;
  request.kv_len = 900;
  request.q = q;
  request.scale = 0.5f;
  request.rule = {.keep = 40'000, .recent = 11, .pool = VotePool::kMean, .pool_width = 9};
  request.into = 4;
  request.start = 70;
  request.key = {8, 15};
  const auto result = loopback.client->Compress(request);
  INFO(result.status());
  REQUIRE(result.ok());
  CHECK(result->epoch == 9);
  CHECK(result->tokens == 40'070);
  CHECK(result->kept.name == "kept");
  REQUIRE(result->kept.data->keys.size() == 40'000);
  CHECK(result->kept.data->keys.back() == 39'999);
  const CompressRequest& asked = loopback.service.last_compress;
  CHECK(asked.context == 3);
  CHECK(asked.layer == 2);
  CHECK(asked.q_start == 5);
  CHECK(asked.kv_len == 900);
  CHECK(asked.scale == 0.5f);
  CHECK(asked.rule.keep == 40'000);
  CHECK(asked.rule.recent == 11);
  CHECK(asked.rule.pool == VotePool::kMean);
  CHECK(asked.rule.pool_width == 9);
  CHECK(asked.into == 4);
  CHECK(asked.start == 70);
  CHECK(asked.key == request.key);
  const auto refused = [&](absl::string_view why) {
    CHECK(loopback.client->Compress(request).status().message() == why);
  };
  request.rule.recent = 40'001;
  refused("rule.recent: 40001; expected at most keep, 40000");
  request.rule = {};
  refused("rule.keep: 0; expected 1 to 17179869184");
  request.rule = {.keep = 3, .pool_width = 4};
  refused("rule.pool_width: 4; expected an odd number");
}

}  // namespace
}  // namespace annulus
