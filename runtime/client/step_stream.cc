#include "runtime/client/step_stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/rpc/protocol/steps.h"

namespace annulus {
namespace {

// How a stream's end reads for the steps that were under way: it may be opened again at once,
// unless the server said something about the steps themselves.
absl::Status LostBy(const grpc::Status& end) {
  const absl::Status status = FromGrpc(end);
  if (absl::IsResourceExhausted(status) || absl::IsUnimplemented(status) ||
      absl::IsInvalidArgument(status)) {
    return status;
  }
  return absl::UnavailableError(
      absl::StrCat("the stream of steps ended: ", status.ok() ? "closed" : status.message()));
}

}  // namespace

// One gRPC stream from its opening to its end, and the thread that waits for its events. Calls of
// any thread start its operations; at most one read and one write are under way.
class StepStream::Connection {
 public:
  explicit Connection(v1::Annulus::Stub* stub)
      : stream_(stub->PrepareAsyncSteps(&context_, &queue_)) {
    stream_->StartCall(Tag(kStart));
    thread_ = std::thread([this] { Pump(); });
  }

  ~Connection() {
    context_.TryCancel();
    thread_.join();
  }

  bool ended() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ended_;
  }

  // The results of the requests, which fit one batch.
  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt);

 private:
  enum Event : intptr_t { kStart = 1, kRead, kWrite, kFinish };
  struct Waiting {
    explicit Waiting(absl::Span<const StepRequest> requests) : answers(requests) {}
    StepAnswersReader answers;
    absl::Status failure;  // of the whole batch
    bool over = false;
    std::condition_variable changed;
  };

  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  void Pump();
  void OnEvent(Event event, bool ok);
  void OnReply();
  void Write(v1::StepsRequest request);
  void WriteNext();
  static void End(Waiting* waiting, absl::Status failure);

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  const std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::StepsRequest, v1::StepsReply>> stream_;
  v1::StepsReply reply_;  // the reader's
  grpc::Status end_;      // the reader's

  std::mutex mutex_;  // the rest
  bool started_ = false;
  bool writing_ = false;
  bool ended_ = false;
  absl::Status lost_;  // once ended_
  std::deque<v1::StepsRequest> to_write_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Waiting*> waiting_;
  std::thread thread_;
};

StepResults StepStream::Connection::Step(absl::Span<const StepRequest> requests,
                                         const Attempt& attempt) {
  v1::StepsRequest message;
  ToProto(requests, message.mutable_batch());
  if (attempt.deadline != absl::InfiniteFuture()) {
    const int64_t left_us = absl::ToInt64Microseconds(attempt.deadline - absl::Now());
    message.mutable_batch()->set_time_left_us(std::max<int64_t>(1, left_us));
  }
  Waiting waiting(requests);
  uint64_t id = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return AllFail(requests.size(), lost_);
    id = ++last_id_;
    waiting_.emplace(id, &waiting);
    message.mutable_batch()->set_id(id);
    Write(std::move(message));
  }
  const CancelWatch watch(attempt.cancel, [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!waiting.over) End(&waiting, absl::CancelledError("the caller cancelled the call"));
  });
  std::unique_lock<std::mutex> lock(mutex_);
  const auto over = [&] { return waiting.over; };
  if (attempt.deadline == absl::InfiniteFuture()) {
    waiting.changed.wait(lock, over);
  } else if (!waiting.changed.wait_until(lock, absl::ToChronoTime(attempt.deadline), over)) {
    End(&waiting, absl::DeadlineExceededError("no answer before the deadline"));
  }
  waiting_.erase(id);
  const bool abandoned = !waiting.failure.ok() && !ended_ && !waiting.answers.complete();
  if (abandoned) {
    v1::StepsRequest cancel;
    cancel.set_cancel(id);
    Write(std::move(cancel));
  }
  if (!waiting.failure.ok()) return AllFail(requests.size(), waiting.failure);
  return waiting.answers.Take();
}

void StepStream::Connection::End(Waiting* waiting, absl::Status failure) {
  waiting->failure = std::move(failure);
  waiting->over = true;
  waiting->changed.notify_one();
}

// Under mutex_, as is WriteNext.
void StepStream::Connection::Write(v1::StepsRequest request) {
  to_write_.push_back(std::move(request));
  WriteNext();
}

void StepStream::Connection::WriteNext() {
  if (!started_ || writing_ || ended_ || to_write_.empty()) return;
  writing_ = true;
  // The message is serialised here and now.
  stream_->Write(to_write_.front(), Tag(kWrite));
  to_write_.pop_front();
}

void StepStream::Connection::Pump() {
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
    OnEvent(static_cast<Event>(reinterpret_cast<intptr_t>(tag)), ok);
  }
}

void StepStream::Connection::OnEvent(Event event, bool ok) {
  if (event == kRead && ok) {
    OnReply();
    stream_->Read(&reply_, Tag(kRead));
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  switch (event) {
    case kStart:
      started_ = ok;
      if (ok) stream_->Read(&reply_, Tag(kRead));
      if (!ok) stream_->Finish(&end_, Tag(kFinish));
      break;
    case kWrite:
      writing_ = false;
      break;
    case kRead:
      stream_->Finish(&end_, Tag(kFinish));
      break;
    case kFinish:
      ended_ = true;
      lost_ = LostBy(end_);
      for (const auto& [id, waiting] : waiting_) {
        if (!waiting->over) End(waiting, lost_);
      }
      queue_.Shutdown();
      break;
  }
  WriteNext();
}

void StepStream::Connection::OnReply() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = waiting_.find(reply_.id());
  // Whoever asked may have stopped waiting.
  if (found == waiting_.end() || found->second->over) return;
  Waiting* waiting = found->second;
  const absl::Status added = waiting->answers.Add(reply_);
  if (!added.ok() || waiting->answers.complete()) End(waiting, added);
}

StepStream::StepStream(v1::Annulus::Stub* stub) : stub_(stub) {}
StepStream::~StepStream() = default;

std::shared_ptr<StepStream::Connection> StepStream::Current() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (connection_ == nullptr || connection_->ended()) {
    connection_ = std::make_shared<Connection>(stub_);
  }
  return connection_;
}

StepResults StepStream::Step(absl::Span<const StepRequest> requests, const Attempt& attempt) {
  const absl::StatusOr<std::vector<StepCut>> cuts = CutSteps(requests);
  if (!cuts.ok()) return AllFail(requests.size(), cuts.status());
  const std::shared_ptr<Connection> connection = Current();
  if (cuts->size() == 1) return connection->Step(requests, attempt);
  StepResults results;
  results.reserve(requests.size());
  for (const StepCut& cut : *cuts) {
    for (absl::StatusOr<StepResult>& result :
         connection->Step(requests.subspan(cut.first, cut.count), attempt)) {
      results.push_back(std::move(result));
    }
  }
  return results;
}

}  // namespace annulus
