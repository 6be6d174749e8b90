#include "runtime/rpc/step_streams.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/rpc/annulus.grpc.pb.h"
#include "runtime/rpc/handlers.h"
#include "runtime/rpc/protocol/steps.h"

namespace annulus {

class StepStreams::OpenStream {
 public:
  OpenStream(Service* service, Admission* admission, int batches_max, grpc::ServerContext* context,
             Stream* stream)
      : service_(service),
        admission_(admission),
        batches_max_(batches_max),
        context_(context),
        stream_(stream) {}

  absl::Status Run();
  void Drain();

 private:
  using CancelFlag = std::shared_ptr<std::atomic<bool>>;

  void TakeTurns();
  bool Read(v1::StepsRequest* request, CancelFlag* cancelled);
  bool Register(uint64_t id, CancelFlag* cancelled);
  void Work(const v1::StepBatch& batch, const std::atomic<bool>& cancelled);
  std::vector<absl::StatusOr<StepResult>> Answer(const v1::StepBatch& batch,
                                                 const std::atomic<bool>& cancelled);
  void Finish(uint64_t id);

  Service* const service_;
  Admission* const admission_;
  const int batches_max_;
  grpc::ServerContext* const context_;
  Stream* const stream_;

  std::mutex reading_;  // held by the thread whose turn it is to read
  bool ended_ = false;  // under reading_
  std::mutex writing_;
  std::mutex mutex_;  // the rest
  std::map<uint64_t, CancelFlag> running_;
  std::vector<std::thread> helpers_;
  int helpers_started_ = 0;
  bool draining_ = false;
  absl::Status failure_;  // what the stream ends with, if the client broke its rules
};

absl::Status StepStreams::OpenStream::Run() {
  TakeTurns();
  while (true) {
    std::thread helper;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (helpers_.empty()) return failure_;
      helper = std::move(helpers_.back());
      helpers_.pop_back();
    }
    helper.join();  // which may have started another one before it ended
  }
}

void StepStreams::OpenStream::TakeTurns() {
  v1::StepsRequest request;
  CancelFlag cancelled;
  while (Read(&request, &cancelled)) {
    Work(request.batch(), *cancelled);
    Finish(request.batch().id());
  }
}

// The next batch; false once there is none. What a batch needs to be cancelled is in place before
// another thread can read the cancellation.
bool StepStreams::OpenStream::Read(v1::StepsRequest* request, CancelFlag* cancelled) {
  const std::lock_guard<std::mutex> turn(reading_);
  while (!ended_ && stream_->Read(request)) {
    if (request->kind_case() == v1::StepsRequest::kBatch) {
      if (Register(request->batch().id(), cancelled)) return true;
      break;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = running_.find(request->cancel());
    if (found != running_.end()) found->second->store(true);
  }
  ended_ = true;
  return false;
}

bool StepStreams::OpenStream::Register(uint64_t id, CancelFlag* cancelled) {
  *cancelled = std::make_shared<std::atomic<bool>>(false);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_.emplace(id, *cancelled).second) {
    failure_ = absl::InvalidArgumentError(
        absl::StrCat("batch.id is ", id, ", of a batch under way; expected an id of its own"));
    return false;
  }
  // Somebody must be left to read.
  const bool all_work = static_cast<int>(running_.size()) == helpers_started_ + 1;
  if (all_work && helpers_started_ + 1 < batches_max_) {
    ++helpers_started_;
    helpers_.emplace_back([this] { TakeTurns(); });
  }
  return true;
}

void StepStreams::OpenStream::Work(const v1::StepBatch& batch, const std::atomic<bool>& cancelled) {
  const std::vector<absl::StatusOr<StepResult>> results = Answer(batch, cancelled);
  const std::lock_guard<std::mutex> lock(writing_);
  // A stream that broke ends at the next read.
  SendAnswers(batch.id(), results,
              [this](const v1::StepsReply& reply) { return stream_->Write(reply); });
}

std::vector<absl::StatusOr<StepResult>> StepStreams::OpenStream::Answer(
    const v1::StepBatch& batch, const std::atomic<bool>& cancelled) {
  const auto refuse = [&](const absl::Status& why) {
    return AllFail(static_cast<size_t>(batch.steps_size()), why);
  };
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (draining_) return refuse(absl::UnavailableError("the server is shutting down"));
  }
  Admission::Ticket ticket(admission_);
  if (absl::Status status = ticket.Enter(); !status.ok()) return refuse(status);
  const auto bytes = static_cast<int64_t>(batch.ByteSizeLong());
  if (absl::Status status = ticket.Reserve(bytes); !status.ok()) return refuse(status);
  const absl::StatusOr<std::vector<StepRequest>> requests = FromProto(batch);
  if (!requests.ok()) return refuse(requests.status());
  CallContext call;
  if (batch.time_left_us() != 0) {
    call.deadline = absl::Now() + absl::Microseconds(batch.time_left_us());
  }
  call.cancelled = [&cancelled, gone = CallerGone(context_)] { return cancelled.load() || gone(); };
  return service_->Step(*requests, call);
}

void StepStreams::OpenStream::Finish(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  running_.erase(id);
  if (draining_ && running_.empty()) context_->TryCancel();
}

void StepStreams::OpenStream::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  if (running_.empty()) context_->TryCancel();
}

absl::Status StepStreams::Serve(grpc::ServerContext* context, Stream* stream) {
  OpenStream opened(service_, admission_, batches_max_, context, stream);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (static_cast<int>(open_.size()) >= streams_max_) {
      return WithRetryAfter(
          absl::ResourceExhaustedError(absl::StrCat("step_streams_max ", streams_max_,
                                                    " streams of steps are open; try again later")),
          absl::Seconds(1));
    }
    if (draining_) return absl::UnavailableError("the server is shutting down");
    open_.insert(&opened);
  }
  const absl::Status status = opened.Run();
  const std::lock_guard<std::mutex> lock(mutex_);
  open_.erase(&opened);
  return status;
}

void StepStreams::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  for (OpenStream* stream : open_) stream->Drain();
}

}  // namespace annulus
