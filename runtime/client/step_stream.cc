#include "runtime/client/step_stream.h"

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/rpc/annulus.grpc.pb.h"
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

// One gRPC stream from its opening to its end. It has no thread: of the callers that wait for an
// answer one at a time waits for the stream's events, whoever they are for, and hands this turn on
// when its own answer has come. So an answer wakes no thread but the one that wants it. At most one
// read and one write are under way.
class StepStream::Connection {
 public:
  explicit Connection(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::Annulus::NewStub(channel)),
        stream_(stub_->PrepareAsyncSteps(&context_, &queue_)) {
    stream_->StartCall(Tag(kStart));
  }

  ~Connection() {
    context_.TryCancel();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) OnEvent(tag, ok);
  }

  // Looks first at what has happened while nobody waited.
  bool ended() {
    std::unique_lock<std::mutex> lock(mutex_);
    PollReady(&lock);
    return ended_;
  }

  // The results of the requests, which fit one batch.
  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt);

 private:
  enum Event : intptr_t { kStart = 1, kRead, kWrite, kFinish, kWake };
  struct Waiting {
    explicit Waiting(absl::Span<const StepRequest> requests) : answers(requests) {}
    StepAnswersReader answers;
    absl::Status failure;  // of the whole batch
    bool over = false;
    std::condition_variable changed;  // it is over, or nobody has the turn
  };

  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  void Wait(Waiting* waiting, absl::Time deadline, std::unique_lock<std::mutex>* lock);
  bool TakeTurn(absl::Time deadline, std::unique_lock<std::mutex>* lock);
  void PollReady(std::unique_lock<std::mutex>* lock);
  void HandOn();
  void Wake();
  void OnEvent(void* tag, bool ok);
  void OnReply();
  void Write(v1::StepsRequest request);
  void WriteNext();
  static void End(Waiting* waiting, absl::Status failure);

  const std::unique_ptr<v1::Annulus::Stub> stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  const std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::StepsRequest, v1::StepsReply>> stream_;
  v1::StepsReply reply_;  // the reader's
  grpc::Status end_;      // the reader's

  std::mutex mutex_;      // the rest
  bool polling_ = false;  // somebody has the turn
  // Ends that one's wait. gRPC may still touch an alarm that has gone before its event has come, so
  // there is one for the connection's life, and it is set again only then.
  grpc::Alarm alarm_;
  bool waking_ = false;
  bool started_ = false;
  bool writing_ = false;
  bool ended_ = false;
  absl::Status lost_;  // once ended_
  std::deque<v1::StepsRequest> to_write_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Waiting*> waiting_;
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
    if (waiting.over) return;
    End(&waiting, absl::CancelledError("the caller cancelled the call"));
    Wake();
  });
  std::unique_lock<std::mutex> lock(mutex_);
  Wait(&waiting, attempt.deadline, &lock);
  waiting_.erase(id);
  if (!waiting.failure.ok() && !ended_) {
    v1::StepsRequest cancel;
    cancel.set_cancel(id);
    Write(std::move(cancel));
    PollReady(&lock);  // it leaves even if nobody comes to wait again
  }
  if (!waiting.failure.ok()) return AllFail(requests.size(), waiting.failure);
  return waiting.answers.Take();
}

void StepStream::Connection::Wait(Waiting* waiting, absl::Time deadline,
                                  std::unique_lock<std::mutex>* lock) {
  while (!waiting->over) {
    if (absl::Now() >= deadline) {
      End(waiting, absl::DeadlineExceededError("no answer before the deadline"));
    } else if (!polling_) {
      TakeTurn(deadline, lock);
    } else if (deadline == absl::InfiniteFuture()) {
      waiting->changed.wait(*lock);
    } else {
      waiting->changed.wait_until(*lock, absl::ToChronoTime(deadline));
    }
  }
  HandOn();
}

// Sees to it that one of those that wait takes the turn, if nobody has it.
void StepStream::Connection::HandOn() {
  if (polling_) return;
  for (const auto& [id, waiting] : waiting_) {
    if (waiting->over) continue;
    waiting->changed.notify_one();
    return;
  }
}

// Waits for one event and handles it; false if there was none.
bool StepStream::Connection::TakeTurn(absl::Time deadline, std::unique_lock<std::mutex>* lock) {
  polling_ = true;
  lock->unlock();
  void* tag = nullptr;
  bool ok = false;
  const bool some =
      queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline)) == grpc::CompletionQueue::GOT_EVENT;
  if (some) OnEvent(tag, ok);
  lock->lock();
  polling_ = false;
  return some;
}

// Lets whoever waits for events look again at whether its own call is over.
void StepStream::Connection::Wake() {
  if (ended_ || waking_) return;
  waking_ = true;
  alarm_.Set(&queue_, gpr_now(GPR_CLOCK_MONOTONIC), Tag(kWake));
}

void StepStream::Connection::PollReady(std::unique_lock<std::mutex>* lock) {
  // A time long past; gRPC takes one before the epoch for the end of all times.
  while (!polling_ && TakeTurn(absl::UnixEpoch(), lock)) {
  }
  HandOn();
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

void StepStream::Connection::OnEvent(void* tag, bool ok) {
  const auto event = static_cast<Event>(reinterpret_cast<intptr_t>(tag));
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
    case kWake:
      waking_ = false;
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

StepStream::StepStream(std::shared_ptr<grpc::Channel> channel) : channel_(std::move(channel)) {}
StepStream::~StepStream() = default;

std::shared_ptr<StepStream::Connection> StepStream::Current() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (connection_ == nullptr || connection_->ended()) {
    connection_ = std::make_shared<Connection>(channel_);
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
