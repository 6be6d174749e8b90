#include "runtime/server/step_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/server/handlers.h"

namespace annulus {
namespace {

constexpr const auto& kCall = CallOf<StepsRequest>();
constexpr absl::Duration kReopenAfter = absl::Milliseconds(1);

}  // namespace

absl::Status StepService::Open(grpc::ServerContext* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (draining_) return absl::UnavailableError("the server is shutting down");
  if (static_cast<int>(open_.size()) >= streams_max_) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("step_streams_max ", streams_max_,
                                                  " streams of steps are open; try again later")),
        absl::Seconds(1));
  }
  open_.emplace(context, false);
  return absl::OkStatus();
}

bool StepService::SetBusy(grpc::ServerContext* context, bool busy) {
  const std::lock_guard<std::mutex> lock(mutex_);
  open_.at(context) = busy;
  if (draining_ && !busy) context->TryCancel();
  return !draining_;
}

// An idle stream does not outlive its caller's token.
bool StepService::Read(grpc::ServerContext* context, Stream* stream, const Caller& caller,
                       v1::StepBatch* batch) {
  std::optional<StallWatch::Wait> wait;
  if (caller.expires != absl::InfiniteFuture()) wait.emplace(stalls_, context, caller.expires);
  return stream->Read(batch);
}

absl::Status StepService::Serve(grpc::ServerContext* context, Stream* stream) {
  ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
  absl::StatusOr<Caller> caller = door_->Admit(*context, kCall.name, kCall.access);
  ANNULUS_RETURN_IF_ERROR(caller.status());
  ANNULUS_RETURN_IF_ERROR(Open(context));
  v1::StepBatch batch;
  bool broken = false;
  while (!broken && Read(context, stream, *caller, &batch)) {
    if (door_->asks()) {
      caller = door_->Admit(*context, kCall.name, kCall.access);
      if (!caller.ok()) break;
    }
    const bool serving = SetBusy(context, true);
    const StepResults results =
        serving ? Answer(context, *caller, batch)
                : StepResultsOf(absl::UnavailableError("the server is shutting down"),
                                static_cast<size_t>(batch.steps_size()));
    broken = !SendAnswers(results, [&](const v1::StepsReply& reply) {
      const StallWatch::Wait wait(stalls_, context);
      return stream->Write(reply);
    });
    SetBusy(context, false);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_.erase(context);
  }
  if (!absl::IsUnauthenticated(caller.status())) return caller.status();
  return WithRetryAfter(
      absl::UnauthenticatedError("authorization: not accepted any more; expected that the stream "
                                 "is opened again with a fresh token"),
      kReopenAfter);
}

StepResults StepService::Answer(grpc::ServerContext* context, const Caller& caller,
                                const v1::StepBatch& batch) {
  const auto refuse = [&](const absl::Status& why) {
    return StepResultsOf(why, static_cast<size_t>(batch.steps_size()));
  };
  Admission::Ticket ticket(admission_);
  if (absl::Status status = ticket.Enter(); !status.ok()) return refuse(status);
  const auto bytes = static_cast<int64_t>(batch.ByteSizeLong());
  if (absl::Status status = ticket.Reserve(bytes); !status.ok()) return refuse(status);
  const absl::Status may_append = CheckMay(caller, "append", Access::kWrite);
  std::vector<absl::StatusOr<StepRequest>> requests = FromProto(batch);
  StepResults results = refuse(absl::InternalError("not tried"));
  std::vector<StepRequest> good;
  std::vector<size_t> index;  // of good[i] in the batch
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].ok() && requests[i]->k.tokens != 0 && !may_append.ok()) {
      requests[i] = may_append;
    }
    if (!requests[i].ok()) {
      results[i] = requests[i].status();
      continue;
    }
    good.push_back(*std::move(requests[i]));
    index.push_back(i);
  }
  CallContext call;
  call.caller = caller;
  if (batch.time_left_us() != 0) {
    call.deadline = absl::Now() + absl::Microseconds(batch.time_left_us());
  }
  call.cancelled = CallerGone(context);
  StepResults answers = StepResultsOf(service_->Call(StepsRequest{good}, call), good.size());
  if (good.size() == results.size()) return answers;
  for (size_t i = 0; i < index.size(); ++i) results[index[i]] = std::move(answers[i]);
  return results;
}

void StepService::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  for (const auto& [context, busy] : open_) {
    if (!busy) context->TryCancel();
  }
}

}  // namespace annulus
