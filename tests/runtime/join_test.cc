// Who is heard by a coordinator, and who knows the channel of a call's exchange.
#include <algorithm>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/time/clock.h"
#include "base/log.h"
#include "comm/local/local_network.h"
#include "runtime/coordinator/admitted_workers.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/protocol/cluster/wire.h"
#include "runtime/worker/worker.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

// Writes down the channels that its process opens.
class ListeningFabric final : public Fabric {
 public:
  ListeningFabric(std::unique_ptr<Fabric> fabric, std::vector<uint64_t>* channels)
      : fabric_(std::move(fabric)), channels_(channels) {}

  Messenger& messenger() override { return fabric_->messenger(); }
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(
      uint64_t channel, int rank, absl::Span<const std::string> addresses) override {
    {
      static std::mutex mutex;
      const std::lock_guard<std::mutex> lock(mutex);
      channels_->push_back(channel);
    }
    return fabric_->OpenExchange(channel, rank, addresses);
  }

 private:
  const std::unique_ptr<Fabric> fabric_;
  std::vector<uint64_t>* const channels_;
};

struct Cluster {
  explicit Cluster(bool workers_need_keys) {
    SetLogLevel(LogLevel::kOff);
    CoordinatorOptions options;
    options.fabric = network.MakeFabric("coordinator").value();
    options.heartbeat_timeout = absl::Seconds(30);
    options.workers_need_keys = workers_need_keys;
    coordinator = Coordinator::Start(std::move(options)).value();
  }

  std::unique_ptr<Worker> StartWorker(const std::string& name,
                                      const std::optional<LinkKey>& key = {},
                                      const std::string& data_address = "") {
    WorkerOptions options;
    options.fabric = std::make_unique<ListeningFabric>(network.MakeFabric(name).value(), &channels);
    options.coordinator_address = coordinator->fabric_address();
    options.coordinator_key = key;
    options.name = name;
    options.data_address = data_address;
    options.backend = MakeBackend("reference", 1).value();
    options.heartbeat_timeout = absl::Seconds(30);
    return Worker::Start(std::move(options)).value();
  }

  LinkKey Admit(const std::string& data_address = "") const {
    return coordinator->admitted().Admit("", data_address, absl::Now());
  }

  LocalNetwork network;
  std::vector<uint64_t> channels;
  std::unique_ptr<Coordinator> coordinator;
};

bool Joins(Worker& worker, absl::Duration patience) {
  return worker.WaitUntilJoined(absl::Now() + patience).ok();
}

TEST_CASE("A worker joins with a key that its coordinator has drawn, and not without") {
  Cluster cluster(/*workers_need_keys=*/true);
  const LinkKey key = cluster.Admit();
  const auto stranger = cluster.StartWorker("stranger");
  const auto guesser = cluster.StartWorker("guesser", LinkKey::Random());
  const auto member = cluster.StartWorker("member", key);
  CHECK(Joins(*member, absl::Seconds(20)));
  CHECK(!Joins(*stranger, absl::Milliseconds(100)));
  CHECK(!Joins(*guesser, absl::Milliseconds(10)));
  // One that is told a key later.
  guesser->SetCoordinatorAddress(cluster.coordinator->fabric_address(), cluster.Admit());
  CHECK(Joins(*guesser, absl::Seconds(20)));
  cluster.coordinator->admitted().Dismiss(key);
  const auto late = cluster.StartWorker("late", key);
  CHECK(!Joins(*late, absl::Milliseconds(100)));
  const auto status = cluster.coordinator->Call(StatusRequest{}, {});
  REQUIRE(status.ok());
  CHECK(status->workers.size() == 2);
}

TEST_CASE("A worker takes uploads where it said that it would when it got its key") {
  Cluster cluster(/*workers_need_keys=*/true);
  const auto honest = cluster.StartWorker("honest", cluster.Admit("10.0.0.1:5"), "10.0.0.1:5");
  const auto liar = cluster.StartWorker("liar", cluster.Admit("10.0.0.2:5"), "10.0.0.1:5");
  CHECK(Joins(*honest, absl::Seconds(20)));
  CHECK(!Joins(*liar, absl::Milliseconds(200)));
  const auto status = cluster.coordinator->Call(StatusRequest{}, {});
  REQUIRE(status.ok());
  REQUIRE(status->workers.size() == 1);
  CHECK(status->workers[0].data_address == "10.0.0.1:5");
}

TEST_CASE("A key stays while it is asked for, and goes when it is not or when there are too many") {
  LocalNetwork network;
  const auto fabric = network.MakeFabric("coordinator").value();
  AdmittedWorkers admitted(fabric->messenger(), 3);
  const absl::Time begin = absl::Now();
  const auto at = [&](double minutes) { return begin + minutes * AdmittedWorkers::kKeyTime; };
  const LinkKey a = admitted.Admit("", "a:1", at(0));
  CHECK(admitted.Admit(a.view(), "a:2", at(0.9)) == a);
  CHECK(admitted.Check(a, "a:2", at(1.8)).ok());
  CHECK(absl::IsPermissionDenied(admitted.Check(a, "a:1", at(1.8))));
  CHECK(absl::IsPermissionDenied(admitted.Check(a, "a:2", at(2))));
  CHECK(!(admitted.Admit(a.view(), "a:2", at(2)) == a));  // it was gone
  CHECK(!(admitted.Admit("guess", "a:2", at(2)) == a));
  const LinkKey b = admitted.Admit("", "b:1", at(2));
  CHECK(admitted.Check(b, "b:1", at(2)).ok());
  for (int i = 0; i < 3; ++i) admitted.Admit("", "", at(2.1));
  CHECK(!admitted.Check(b, "b:1", at(2.1)).ok());
}

// Partials of somebody who is no worker would be merged into answers.
TEST_CASE("A worker hears its coordinator and other workers, and nobody else") {
  Cluster cluster(/*workers_need_keys=*/false);
  const auto worker = cluster.StartWorker("a");
  REQUIRE(Joins(*worker, absl::Seconds(20)));
  const uint64_t before = worker->Snapshot().bytes_received;
  const auto stranger = cluster.network.MakeFabric("stranger").value();
  const auto peer = stranger->messenger().Connect("local:a");
  REQUIRE(peer.ok());
  const Message partials = wire::Encode(wire::Partials{1, {{{1, 0}, 1000}}}, Buffer(1000));
  REQUIRE(stranger->messenger().Send(*peer, partials).ok());
  absl::SleepFor(absl::Milliseconds(100));
  CHECK(worker->Snapshot().bytes_received == before);
}

TEST_CASE("The channel of a call's exchange cannot be told from that of another") {
  Cluster cluster(/*workers_need_keys=*/false);
  const auto a = cluster.StartWorker("a");
  const auto b = cluster.StartWorker("b");
  REQUIRE((Joins(*a, absl::Seconds(20)) && Joins(*b, absl::Seconds(20))));
  const ContextSpec spec = test::SmallF32Spec();
  Rng rng(3);
  const test::LayerKv kv(spec, 256, rng);
  Service& service = *cluster.coordinator;
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(service.Call(kv.Append(id, 0, 0, 256), {}).ok());
  const Tensor q = test::RandomTensor(128, spec.heads, spec.head_dim, rng);
  AttendRequest request;
  request.context = id;
  request.q_start = 128;
  request.kv_len = 256;
  request.q = q;
  request.pattern = "causal";
  request.plan = PlanKind::kRing;
  for (int i = 0; i < 2; ++i) REQUIRE(service.Call(request, {}).ok());
  // Each of the two calls has one, which both workers open.
  std::vector<uint64_t> channels = cluster.channels;
  REQUIRE(channels.size() == 4);
  std::sort(channels.begin(), channels.end());
  CHECK(channels[0] == channels[1]);
  CHECK(channels[2] == channels[3]);
  CHECK(channels[0] != 0);
  CHECK(channels[2] - channels[0] > uint64_t{1} << 32);
}

}  // namespace
}  // namespace annulus
