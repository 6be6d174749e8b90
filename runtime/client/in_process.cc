// The transport to a service within this process: a coordinator and workers over the local network.
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/trace_context.h"
#include "comm/local/local_network.h"
#include "runtime/client/append_pieces.h"
#include "runtime/client/transport.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/limits.h"
#include "runtime/worker/worker.h"

namespace annulus {
namespace {

constexpr int kThreadsMax = 1024;  // for computing, of all workers
constexpr absl::Duration kJoinTimeout = absl::Seconds(30);

CallContext ContextOf(const Attempt& attempt) {
  CallContext call;
  call.deadline = attempt.deadline;
  call.trace = ParseTraceparent(attempt.traceparent).value_or(TraceContext());
  call.cancelled = [cancel = attempt.cancel] { return cancel.cancelled(); };
  return call;
}

class InProcessTransport final : public Transport {
 public:
  absl::Status Start(const InProcessOptions& options);

  ConnectionState connection() const override { return ConnectionState::kReady; }

 private:
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const Attempt& attempt) override {
    return AnswerAny(request, [&](const auto& typed) { return Do(typed, attempt); });
  }

  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Do(const Request& request, const Attempt& attempt) {
    return coordinator_->Call(request, ContextOf(attempt));
  }

  absl::StatusOr<AppendResult> Do(const AppendRequest& request, const Attempt& attempt) {
    ANNULUS_ASSIGN_OR_RETURN(const AppendCut cut, CutAppend(request));
    absl::StatusOr<AppendResult> result;
    for (int64_t i = 0; i < cut.pieces(); ++i) {
      result = coordinator_->Call(PieceOf(request, cut, i), ContextOf(attempt));
      if (!result.ok()) return WithCommitted(result.status(), cut, i);
      if (attempt.progress) attempt.progress(cut.bytes * (i + 1) / cut.pieces(), cut.bytes);
    }
    return result;
  }

  // Whatever calls in flight bring finds room.
  LocalNetwork network_{{.queue_bytes_max = std::numeric_limits<size_t>::max(), .simulation = {}}};
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

absl::Status InProcessTransport::Start(const InProcessOptions& options) {
  CoordinatorOptions coordinator;
  coordinator.recovery_wait = absl::ZeroDuration();  // it is the first one of its workers
  ANNULUS_ASSIGN_OR_RETURN(coordinator.fabric, network_.MakeFabric("coordinator"));
  ANNULUS_ASSIGN_OR_RETURN(coordinator_, Coordinator::Start(std::move(coordinator)));
  for (int i = 0; i < options.workers; ++i) {
    WorkerOptions worker;
    worker.name = absl::StrCat("worker-", i);
    ANNULUS_ASSIGN_OR_RETURN(worker.fabric, network_.MakeFabric(worker.name));
    worker.coordinator_address = coordinator_->fabric_address();
    ANNULUS_ASSIGN_OR_RETURN(worker.backend, MakeBackend(options.backend, options.threads, i));
    worker.kv_bytes_limit = options.kv_bytes_limit;
    ANNULUS_ASSIGN_OR_RETURN(workers_.emplace_back(), Worker::Start(std::move(worker)));
  }
  const absl::Time deadline = absl::Now() + kJoinTimeout;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    ANNULUS_RETURN_IF_ERROR(worker->WaitUntilJoined(deadline));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> MakeInProcessTransport(const InProcessOptions& options) {
  if (options.workers < 1 || options.workers > kWorkersHereMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("workers: ", options.workers, "; expected 1 to ", kWorkersHereMax));
  }
  const int threads_max = kThreadsMax / options.workers;
  if (options.threads < 0 || options.threads > threads_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", options.threads, "; expected 0 (one per core) to ", threads_max,
                     ", for ", kThreadsMax, " of all ", options.workers, " workers together"));
  }
  // A library has no business on its program's stderr: what goes wrong is a call's answer, and
  // workers that end, with what they hold, are no news here.
  SetLogLevel(LogLevel::kOff);
  auto transport = std::make_unique<InProcessTransport>();
  ANNULUS_RETURN_IF_ERROR(transport->Start(options));
  return transport;
}

}  // namespace annulus
