// Workers as real processes over UCX: killed, stopped, and left without their coordinator.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "absl/time/clock.h"
#include "base/check.h"
#include "base/log.h"
#include "base/rng.h"
#include "comm/ucx/ucx_fabric.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/worker/worker.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::LayerKv;

// Serves until the coordinator, whose address comes through `pipe`, is gone; then exits with 1.
[[noreturn]] void BeWorker(int pipe) {
  SetLogLevel(LogLevel::kOff);
  std::string address;
  char bytes[1024];
  for (ssize_t n; (n = read(pipe, bytes, sizeof bytes)) > 0;) address.append(bytes, n);
  if (address.empty()) _exit(3);  // the test ended before it had a coordinator
  WorkerOptions options;
  auto fabric = UcxFabric::Create();
  if (!fabric.ok()) _exit(4);
  options.fabric = *std::move(fabric);
  options.coordinator_address = address;
  options.backend = MakeBackend("cpu", 1).value();
  auto worker = Worker::Start(std::move(options));
  if (!worker.ok()) _exit(5);
  while (!(*worker)->lost()) absl::SleepFor(absl::Milliseconds(10));
  _exit(1);
}

class Processes {
 public:
  // Forks before this process has any thread or UCX of its own.
  explicit Processes(int count) {
    for (int i = 0; i < count; ++i) {
      int ends[2];
      ANNULUS_CHECK(pipe(ends) == 0);
      const pid_t pid = fork();
      ANNULUS_CHECK(pid >= 0);
      if (pid == 0) {
        close(ends[1]);
        for (const int other : pipes_) close(other);
        BeWorker(ends[0]);
      }
      close(ends[0]);
      pipes_.push_back(ends[1]);
      pids_.push_back(pid);
    }
  }
  ~Processes() {
    for (const int pipe : pipes_) close(pipe);
    for (const pid_t pid : pids_) {
      if (pid == 0) continue;
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  void Introduce(const std::string& address) {
    for (const int pipe : pipes_) {
      ANNULUS_CHECK(write(pipe, address.data(), address.size()) ==
                    static_cast<ssize_t>(address.size()));
      close(pipe);
    }
    pipes_.clear();
  }
  void Signal(int worker, int signal) {
    kill(pids_[worker], signal);
    // It stops a while after it was told to.
    if (signal == SIGSTOP) waitpid(pids_[worker], nullptr, WUNTRACED);
  }
  // The exit code, or −1 after `patience`.
  int WaitFor(int worker, absl::Duration patience) {
    const absl::Time deadline = absl::Now() + patience;
    while (absl::Now() < deadline) {
      int status = 0;
      if (waitpid(pids_[worker], &status, WNOHANG) == pids_[worker]) {
        pids_[worker] = 0;
        return WEXITSTATUS(status);
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return -1;
  }

 private:
  std::vector<int> pipes_;
  std::vector<pid_t> pids_;
};

int Ready(Service& service) {
  const ClusterStatus status = service.Call(StatusRequest(), {}).value();
  int ready = 0;
  for (const WorkerStatus& worker : status.workers) ready += worker.state == "ready";
  return ready;
}

bool WaitForReady(Service& service, int count) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (Ready(service) != count && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  return Ready(service) == count;
}

TEST_CASE("Worker processes over UCX: killed, stopped, orphaned") {
  Processes processes(4);
  SetLogLevel(LogLevel::kOff);
  CoordinatorOptions options;
  options.fabric = UcxFabric::Create().value();
  auto coordinator = Coordinator::Start(std::move(options)).value();
  processes.Introduce(coordinator->fabric_address());
  REQUIRE(WaitForReady(*coordinator, 4));

  ContextSpec spec;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 32;
  spec.dtype = DType::kF32;
  spec.partition.unit_blocks = 1;
  Rng rng(3);
  const LayerKv kv(spec, 1000, rng);
  const Tensor q = test::RandomTensor(200, 4, 32, rng);
  const Partial expected = test::Oracle(spec, kv, q, 1000, "causal");
  AttendRequest request;
  request.q_start = 800;
  request.kv_len = 1000;
  request.q = q;
  const auto upload = [&] {
    const absl::StatusOr<ContextInfo> context = coordinator->Call(spec, {});
    REQUIRE(context.ok());
    for (int64_t start = 0; start < 1000; start += 250) {
      REQUIRE(coordinator->Call(kv.Append(context->id, 0, start, 250), {}).ok());
    }
    request.context = context->id;
  };
  const auto attend_right = [&](PlanKind plan) {
    request.plan = plan;
    const auto answer = coordinator->Call(request, {});
    INFO(Name(plan) << ": " << answer.status());
    REQUIRE(answer.ok());
    CHECK(test::WorstError(answer->out, answer->lse, expected) < 1e-5);
    CHECK(answer->stats.bytes_moved == answer->stats.planned_bytes);
  };

  upload();
  for (const PlanKind plan : kPlanKinds) attend_right(plan);

  // Killed while calls go on: the next call that does not end well ends at once.
  const absl::Time killed = absl::Now();
  processes.Signal(1, SIGKILL);
  request.plan = PlanKind::kRing;
  absl::Status failed;
  while (failed.ok()) {
    const auto answer = coordinator->Call(request, {});
    if (answer.ok()) REQUIRE(test::WorstError(answer->out, answer->lse, expected) < 1e-5);
    failed = answer.status();
  }
  CHECK(absl::Now() - killed < absl::Milliseconds(500));
  CHECK((absl::IsUnavailable(failed) || absl::IsDataLoss(failed)));
  REQUIRE(WaitForReady(*coordinator, 3));
  CHECK(absl::IsDataLoss(coordinator->Call(request, {}).status()));
  upload();
  CHECK(absl::Now() - killed < absl::Seconds(2));
  for (const PlanKind plan : kPlanKinds) attend_right(plan);

  // Stopped: nothing breaks, only the heartbeats end. It is fenced, and exits when it wakes.
  const absl::Time stopped = absl::Now();
  processes.Signal(2, SIGSTOP);
  CHECK(!coordinator->Call(request, {}).ok());
  CHECK(absl::Now() - stopped < absl::Milliseconds(1500));
  upload();
  attend_right(PlanKind::kPassQ);
  processes.Signal(2, SIGCONT);
  CHECK(processes.WaitFor(2, absl::Seconds(10)) == 1);
  attend_right(PlanKind::kMesh);
  CHECK(Ready(*coordinator) == 2);

  coordinator.reset();
  CHECK(processes.WaitFor(0, absl::Seconds(10)) == 1);
  CHECK(processes.WaitFor(3, absl::Seconds(10)) == 1);
}

}  // namespace
}  // namespace annulus
