#include "runtime/server/step_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/server/handlers.h"

namespace annulus {

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

absl::Status StepService::Serve(grpc::ServerContext* context, Stream* stream) {
  ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
  ANNULUS_RETURN_IF_ERROR(Open(context));
  v1::StepBatch batch;
  bool broken = false;
  while (!broken && stream->Read(&batch)) {
    const bool serving = SetBusy(context, true);
    const StepResults results =
        serving ? Answer(context, batch)
                : StepResultsOf(absl::UnavailableError("the server is shutting down"),
                                static_cast<size_t>(batch.steps_size()));
    broken = !SendAnswers(results, [&](const v1::StepsReply& reply) {
      const StallWatch::Wait wait(stalls_, context);
      return stream->Write(reply);
    });
    SetBusy(context, false);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  open_.erase(context);
  return absl::OkStatus();
}

StepResults StepService::Answer(grpc::ServerContext* context, const v1::StepBatch& batch) {
  const auto refuse = [&](const absl::Status& why) {
    return StepResultsOf(why, static_cast<size_t>(batch.steps_size()));
  };
  Admission::Ticket ticket(admission_);
  if (absl::Status status = ticket.Enter(); !status.ok()) return refuse(status);
  const auto bytes = static_cast<int64_t>(batch.ByteSizeLong());
  if (absl::Status status = ticket.Reserve(bytes); !status.ok()) return refuse(status);
  std::vector<absl::StatusOr<StepRequest>> requests = FromProto(batch);
  StepResults results = refuse(absl::InternalError("not tried"));
  std::vector<StepRequest> good;
  std::vector<size_t> index;  // of good[i] in the batch
  for (size_t i = 0; i < requests.size(); ++i) {
    if (!requests[i].ok()) {
      results[i] = requests[i].status();
      continue;
    }
    good.push_back(*std::move(requests[i]));
    index.push_back(i);
  }
  CallContext call;
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
