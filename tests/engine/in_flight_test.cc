// A run that fails while its transfers are in flight keeps their memory until the exchange has let
// go of it.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/engine/engine.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// Rank 0 of two, whose other rank never answers. As the contract allows, it uses the memory of its
// operations until Abort returns.
class SilentPeer final : public Exchange {
 public:
  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return 0; }
  int world() const override { return 2; }

  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override {
    for (const SendOp& send : sends) {
      const auto* data = static_cast<const std::byte*>(send.data);
      sent_.emplace_back(data, std::vector<std::byte>(data, data + send.size_bytes));
    }
    for (const RecvOp& receive : receives) {
      auto* data = static_cast<std::byte*>(receive.data);
      std::fill_n(data, receive.size_bytes, kArriving);
      receives_.push_back(receive);
    }
    return 1;
  }
  absl::Status Wait(Ticket, absl::Time deadline) override {
    absl::SleepFor(deadline - absl::Now());
    return absl::DeadlineExceededError("the other rank is silent");
  }
  void Abort(absl::Status) override {
    ++aborts_;
    for (const auto& [data, bytes] : sent_) {
      memory_lives_ = memory_lives_ && std::equal(bytes.begin(), bytes.end(), data);
    }
    for (const RecvOp& receive : receives_) {
      const auto* data = static_cast<const std::byte*>(receive.data);
      memory_lives_ = memory_lives_ && std::all_of(data, data + receive.size_bytes,
                                                   [](std::byte b) { return b == kArriving; });
    }
  }
  Counters counters() const override { return {}; }

  bool posted() const { return !sent_.empty() && !receives_.empty(); }
  int aborts() const { return aborts_; }
  // Whether the memory of all operations was untouched when Abort came. What was freed is a fault
  // under the address sanitizer, and holds other bytes elsewhere.
  bool memory_lives() const { return memory_lives_; }

 private:
  static constexpr std::byte kArriving{0x5A};

  const Capabilities capabilities_{"silent", MemoryKind::kHost};
  std::vector<std::pair<const std::byte*, std::vector<std::byte>>> sent_;
  std::vector<RecvOp> receives_;
  int aborts_ = 0;
  bool memory_lives_ = true;
};

Plan RingOfTwo() {
  constexpr int64_t kTokens = 4 * kBlockTokens;
  const PartitionSpec partition{PartitionKind::kContiguous, 1};
  const Problem problem{
      .q_tokens = kTokens,
      .kv_tokens = kTokens,
      .heads = 2,
      .kv_heads = 1,
      .head_dim = 8,
      .v_head_dim = 8,
      .dtype = DType::kF32,
      .pattern = *Pattern::Parse("full", 1),
      .home = Home::kOwners,
      .home_partition = partition,
      .kv = Layout::Of(Placement::kTokens, 2, 2, 1, partition, BlocksOf(kTokens))};
  absl::StatusOr<Plan> plan = BuildPlan(PlanKind::kRing, problem, 0);
  REQUIRE(plan.ok());
  return *std::move(plan);
}

// Runs rank 0, which holds the first half.
absl::Status RunFirstHalf(const Plan& plan, Exchange& exchange, absl::Time deadline,
                          const std::atomic<bool>* cancel) {
  constexpr int64_t kHalf = 2 * kBlockTokens;
  const Tensor q(DType::kF32, kHalf, 2, 8);
  const Tensor kv(DType::kF32, kHalf, 1, 8);
  KvTable held(DType::kF32, 0, 1, 8, 8, 4);
  const KvTable half = KvTable::FromTensors(kv, kv);
  for (int64_t block = 0; block < 2; ++block) held.Set(0, block, half.page(0, block));
  const std::unique_ptr<Backend> backend = *MakeBackend("cpu", 1);
  RankTask task;
  task.plan = &plan;
  task.q = q;
  task.kv = &held;
  task.deadline = deadline;
  task.cancel = cancel;
  return RunRank(task, *backend, exchange).status();
}

TEST_CASE("A launch that fails beside its transfers leaves their memory alone until they ended") {
  SilentPeer exchange;
  const std::atomic<bool> cancel = true;
  const absl::Status status = RunFirstHalf(RingOfTwo(), exchange, absl::InfiniteFuture(), &cancel);
  INFO(status.ToString());
  CHECK(absl::IsCancelled(status));
  CHECK(exchange.posted());
  CHECK(exchange.aborts() == 1);
  CHECK(exchange.memory_lives());
}

TEST_CASE("A deadline that passes while transfers are awaited leaves their memory alone as well") {
  SilentPeer exchange;
  const absl::Status status =
      RunFirstHalf(RingOfTwo(), exchange, absl::Now() + absl::Milliseconds(300), nullptr);
  INFO(status.ToString());
  CHECK(absl::IsDeadlineExceeded(status));
  CHECK(exchange.posted());
  CHECK(exchange.aborts() == 1);
  CHECK(exchange.memory_lives());
}

}  // namespace
}  // namespace annulus
