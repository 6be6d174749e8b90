// Who waits for how long, under a clock of the test's own.
#include <cmath>
#include <deque>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "runtime/server/fair_queue.h"
#include "tests/catch.h"

namespace annulus {
namespace {

bool Anybody(const FairQueue::Call&) {
  return true;
}

// A service with some slots, in which calls are worked off at so much cost a second each, and
// tenants that send calls at random times. What is refused is gone.
class Service {
 public:
  struct Tenant {
    std::string name;
    double calls_per_s = 0;
    double cost_min = 1, cost_max = 1;
    absl::Duration patience = absl::InfiniteDuration();
  };
  struct Served {
    double cost = 0;
    int64_t calls = 0;
    int64_t refused = 0;
    absl::Duration waited_most;
  };

  Service(int slots, double rate, size_t waiting_max) : rate_(rate), queue_(waiting_max) {
    slots_ = slots;
  }

  std::map<std::string, Served> Run(const std::vector<Tenant>& tenants, absl::Duration duration,
                                    uint64_t seed) {
    Rng rng(seed);
    for (const Tenant& tenant : tenants) Arrive(tenant, absl::UnixEpoch(), rng);
    while (!events_.empty() && events_.top().time < absl::UnixEpoch() + duration) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      if (event.call == nullptr) {
        Send(*event.tenant, rng);
        Arrive(*event.tenant, now_, rng);
      } else {
        End(event.call);
      }
    }
    return served_;
  }

 private:
  struct Call : FairQueue::Call {
    std::string tenant;
    absl::Time came;
  };
  struct Event {
    absl::Time time;
    const Tenant* tenant;
    Call* call;  // that ends then; null: the tenant sends one
    bool operator<(const Event& other) const { return time > other.time; }
  };

  void Arrive(const Tenant& tenant, absl::Time now, Rng& rng) {
    const double gap_s = -std::log(1 - rng.Uniform()) / tenant.calls_per_s;
    events_.push({now + absl::Seconds(gap_s), &tenant, nullptr});
  }
  void Send(const Tenant& tenant, Rng& rng) {
    Call& call = calls_.emplace_back();
    call.cost = tenant.cost_min + (tenant.cost_max - tenant.cost_min) * rng.Uniform();
    call.tenant = tenant.name;
    call.came = now_;
    call.latest = now_ + tenant.patience;
    if (slots_ > 0 && queue_.empty()) return Begin(&call);
    FairQueue::Call* pushed_out = nullptr;
    if (queue_.Add(&call, tenant.name, now_, &pushed_out) != FairQueue::Verdict::kWaits) {
      ++served_[tenant.name].refused;
    }
    if (pushed_out != nullptr) ++served_[static_cast<Call*>(pushed_out)->tenant].refused;
  }
  void Begin(Call* call) {
    --slots_;
    Served& served = served_[call->tenant];
    if (call->came >
        absl::UnixEpoch() + absl::Seconds(1)) {  // it is known how fast calls are served
      served.waited_most = std::max(served.waited_most, now_ - call->came);
    }
    events_.push({now_ + absl::Seconds(call->cost / rate_), nullptr, call});
  }
  void End(Call* call) {
    ++slots_;
    served_[call->tenant].cost += call->cost;
    ++served_[call->tenant].calls;
    queue_.NoteServed(call->cost, now_);
    while (slots_ > 0) {
      auto* const next = static_cast<Call*>(queue_.Next(Anybody));
      if (next == nullptr) return;
      Begin(next);
    }
  }

  int slots_ = 0;
  const double rate_;
  FairQueue queue_;
  absl::Time now_ = absl::UnixEpoch();
  std::deque<Call> calls_;
  std::priority_queue<Event> events_;
  std::map<std::string, Served> served_;
};

double Jain(const std::map<std::string, Service::Served>& served) {
  double sum = 0, squares = 0;
  for (const auto& [name, tenant] : served) {
    sum += tenant.cost;
    squares += tenant.cost * tenant.cost;
  }
  return sum * sum / (static_cast<double>(served.size()) * squares);
}

TEST_CASE("eight tenants that send ten times too much are served alike") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{9}));
  INFO(seed);
  Service service(4, 250, 64);  // 1,000 of cost a second
  std::vector<Service::Tenant> tenants;
  for (int i = 0; i < 8; ++i) tenants.push_back({absl::StrCat("t", i), 125, 5, 15});
  const auto served = service.Run(tenants, absl::Seconds(30), seed);
  REQUIRE(served.size() == 8);
  CHECK(Jain(served) >= 0.99);
  double cost = 0;
  for (const auto& [name, tenant] : served) cost += tenant.cost;
  CHECK(cost > 0.98 * 30'000);  // it is never idle
}

TEST_CASE("shares are of cost, not of calls") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{9}));
  INFO(seed);
  Service service(4, 250, 64);
  auto served =
      service.Run({{"small", 5000, 1, 1}, {"large", 50, 100, 200}}, absl::Seconds(60), seed);
  CHECK(served["small"].cost == Approx(served["large"].cost).epsilon(0.03));
}

TEST_CASE("a tenant that floods leaves another its share") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{9}));
  INFO(seed);
  const double overload = GENERATE(2.0, 10.0, 100.0);
  Service service(4, 250, 64);
  // It wants its share, 500 of cost a second, and the other many times all there is.
  auto served = service.Run({{"modest", 50, 5, 15}, {"flood", overload * 100, 5, 15}},
                            absl::Seconds(60), seed);
  CHECK(served["modest"].cost >= 0.95 * std::min(30'000.0, 500.0 * 60));
  CHECK(served["flood"].cost >= 0.9 * 30'000);  // and that has the rest
  // Many that flood leave it a place to wait, too.
  std::vector<Service::Tenant> tenants = {{"modest", 20, 5, 15}};
  for (int i = 0; i < 3; ++i) tenants.push_back({absl::StrCat("flood", i), overload * 100, 5, 15});
  Service crowded(4, 250, 32);
  auto beside = crowded.Run(tenants, absl::Seconds(60), seed);
  CHECK(beside["modest"].refused <= 0.05 * 20 * 60);
}

TEST_CASE("a call whose turn would come too late is refused at once") {
  Service service(1, 1000, 1000);
  // The queue would be 5 s long; nobody waits for much more than it can.
  auto served =
      service.Run({{"hasty", 1000, 5, 15, absl::Milliseconds(200)}}, absl::Seconds(20), 1);
  CHECK(served["hasty"].refused > 15'000);
  CHECK(served["hasty"].waited_most < absl::Milliseconds(400));
  CHECK(served["hasty"].cost > 0.95 * 20'000);
}

TEST_CASE("the queue is bounded, for one tenant by half, and the longest gives way") {
  FairQueue queue(8);
  std::deque<FairQueue::Call> calls(20);
  const absl::Time now = absl::UnixEpoch();
  FairQueue::Call* pushed_out = nullptr;
  const auto add = [&](size_t i, const std::string& tenant) {
    return queue.Add(&calls[i], tenant, now, &pushed_out);
  };
  for (size_t i = 0; i < 4; ++i) CHECK(add(i, "a") == FairQueue::Verdict::kWaits);
  CHECK(add(4, "a") == FairQueue::Verdict::kFull);
  for (size_t i = 4; i < 8; ++i) CHECK(add(i, "b") == FairQueue::Verdict::kWaits);
  CHECK(pushed_out == nullptr);
  CHECK(add(8, "c") == FairQueue::Verdict::kWaits);
  CHECK((pushed_out == &calls[3] || pushed_out == &calls[7]));  // the last of the longest
  CHECK(add(9, "c") == FairQueue::Verdict::kWaits);
  CHECK(pushed_out != nullptr);
  CHECK(add(10, "c") == FairQueue::Verdict::kFull);  // it would only change places
  CHECK(queue.waiting() == 8);

  // Tenants that may not have a turn are passed over, and lose nothing.
  const auto not_c = [](const FairQueue::Call& next) { return next.tenant() != "c"; };
  for (int i = 0; i < 6; ++i) {
    const FairQueue::Call* next = queue.Next(not_c);
    CHECK(next != nullptr);
    CHECK((next != &calls[8] && next != &calls[9]));
  }
  CHECK(queue.Next(not_c) == nullptr);
  queue.Remove(&calls[8]);
  CHECK(queue.Next(Anybody) == &calls[9]);
  CHECK(queue.empty());
  CHECK(queue.Next(Anybody) == nullptr);
}

}  // namespace
}  // namespace annulus
