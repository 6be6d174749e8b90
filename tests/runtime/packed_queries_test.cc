// Queries that several workers get are packed once.
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/one_worker.h"

namespace annulus {
namespace {

// What the workers of a context over three of them are sent.
std::vector<Message> MessagesOf(const AttendRequest& request) {
  ShardMap shards;
  shards.context = shards.storage_id = shards.epoch = 1;
  shards.spec = test::SmallF32Spec();
  shards.world = 3;
  shards.heads = HeadMapOf(shards.spec, shards.world);
  for (int rank = 0; rank < shards.world; ++rank) {
    shards.holders.push_back({.worker = static_cast<WorkerId>(7 + rank), .rank = rank});
  }
  shards.retention = std::make_shared<const Retention>(Retention::Of(shards.spec).value());
  const auto map = std::make_shared<const ShardMap>(std::move(shards));
  CallPlanner planner;
  BatchCall call({CallItem(request)}, CallContext(), planner, Clock::Real());
  PreparedCall prepared =
      call.Prepare({1, {7, 8, 9}, {{absl::OkStatus(), map, false, true, 0}}}).value();
  std::vector<Message> messages;
  for (ShareMessage& one : prepared.messages) messages.push_back(std::move(one.message));
  return messages;
}

TEST_CASE("queries that go to all workers are one piece of memory, however many those are") {
  const ContextSpec spec = test::SmallF32Spec();
  Tensor q(DType::kF32, 200, spec.heads, spec.head_dim);
  for (int64_t i = 0; i < q.view().size(); ++i) q.f32()[i] = static_cast<float>(i);
  AttendRequest request{.context = 1, .q_start = 4000, .kv_len = 4200, .q = q};
  request.plan = PlanKind::kPassQ;
  const std::vector<Message> whole = MessagesOf(request);
  REQUIRE(whole.size() == 3);
  REQUIRE(whole[0].payload.size() == q.size_bytes());
  CHECK(std::memcmp(whole[0].payload.data(), q.data(), q.size_bytes()) == 0);
  CHECK(whole[1].payload.data() == whole[0].payload.data());
  CHECK(whole[2].payload.data() == whole[0].payload.data());

  request.plan = PlanKind::kRing;  // each has rows of its own
  const std::vector<Message> cut = MessagesOf(request);
  REQUIRE(cut.size() == 3);
  CHECK(cut[0].payload.size() + cut[1].payload.size() + cut[2].payload.size() == q.size_bytes());
  CHECK(cut[1].payload.data() != cut[0].payload.data());
}

}  // namespace
}  // namespace annulus
