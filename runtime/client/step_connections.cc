#include "runtime/client/step_connections.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/step_batch.h"

namespace annulus {
namespace {

// Streams that are kept open without a batch under way.
constexpr size_t kIdleMax = 16;

// Batches of one call under way at once. A call has as many messages as its tensors fill; a server
// has a thread and room for a few of each caller's.
constexpr size_t kAtOnceMax = kIdleMax;

// For so long after a batch a stream is taken for open, unless another one has broken since: asking
// gRPC takes tens of µs, which is much of a step, and what is lost on a stream that has just ended
// is retried like any other.
constexpr absl::Duration kFresh = absl::Seconds(1);

// How a stream's end reads for the steps that were under way: it may be opened again at once,
// unless the server said something about the steps themselves or about who asks for them.
absl::Status LostBy(const grpc::Status& end) {
  const absl::Status status = FromGrpc(end);
  if (absl::IsResourceExhausted(status) || absl::IsUnimplemented(status) ||
      absl::IsInvalidArgument(status) || absl::IsUnauthenticated(status) ||
      absl::IsPermissionDenied(status)) {
    return status;
  }
  return absl::UnavailableError(
      absl::StrCat("the stream of steps ended: ", status.ok() ? "closed" : status.message()));
}

}  // namespace

// One gRPC stream from its opening to its end. It has no thread: its events are waited for by the
// caller of the batch under way. A read begins once a batch is on its way, when the service has the
// work, or when an idle stream is asked whether it has ended. Not thread-safe, but for Cancel.
class StepConnections::Connection {
 public:
  Connection(const std::shared_ptr<grpc::Channel>& channel, TokenFile* token)
      : stub_(v1::Annulus::NewStub(channel)),
        stream_(stub_->PrepareAsyncSteps(SetUp(&context_, token), &queue_)) {
    stream_->StartCall(Tag(kStart));
  }

  ~Connection() {
    context_.TryCancel();
    do {
      Read();  // which tells of the end; the stream may open only now
    } while (HandleEvent(absl::InfiniteFuture()));
  }

  // Whether another batch can be sent. Looks at what has happened while none was under way, if that
  // is long, or if a stream `broke` since.
  bool Usable(absl::Time broke) {
    if (answered_ > broke && absl::Now() - answered_ < kFresh) return failure_.ok();
    Read();
    // A time long past; gRPC takes one before the epoch for the end of all times.
    while (HandleEvent(absl::UnixEpoch())) {
    }
    return failure_.ok();
  }

  // Sends a batch of requests that fit one.
  void Send(absl::Span<const StepRequest> requests, const Attempt& attempt) {
    const absl::Time deadline = attempt.deadline;
    answers_.emplace(requests);
    ToProto(requests, &batch_.emplace());
    if (!attempt.traceparent.empty()) batch_->set_traceparent(attempt.traceparent);
    if (deadline != absl::InfiniteFuture()) {
      const int64_t left_us = absl::ToInt64Microseconds(deadline - absl::Now());
      batch_->set_time_left_us(std::max<int64_t>(1, left_us));
    }
    if (open_) Write();
  }

  // Waits for the batch's answers; what it failed with, the stream is of no use after.
  absl::StatusOr<StepResults> Receive(const Attempt& attempt) {
    while (failure_.ok() && (writing_ || !answers_->complete())) {
      Read();
      const bool in_time = HandleEvent(attempt.deadline);
      if (attempt.cancel.cancelled()) {
        failure_ = absl::CancelledError("the caller cancelled the call");
      } else if (!in_time) {
        failure_ = absl::DeadlineExceededError("no answer before the deadline");
      }
    }
    if (!failure_.ok()) return failure_;
    StepResults results = answers_->Take();
    answers_.reset();
    answered_ = absl::Now();
    return results;
  }

  // From any thread: ends the stream, and so the wait of whoever uses it.
  void Cancel() { context_.TryCancel(); }

 private:
  static grpc::ClientContext* SetUp(grpc::ClientContext* context, TokenFile* token) {
    SetUpCall(absl::InfiniteFuture(), context, token);
    return context;
  }

  enum Event : intptr_t { kStart = 1, kRead, kWrite, kFinish };

  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  bool HandleEvent(absl::Time deadline);
  void OnEvent(Event event, bool ok);
  void OnReply() {
    failure_.Update(answers_.has_value() ? answers_->Add(reply_)
                                         : absl::InternalError("an answer to nothing has come"));
  }

  void Read() {
    if (!open_ || reading_) return;
    stream_->Read(&reply_, Tag(kRead));
    reading_ = true;
  }
  void Write() {
    stream_->Write(*batch_, Tag(kWrite));  // serialised here and now
    batch_.reset();
    writing_ = true;
  }

  const std::unique_ptr<v1::Annulus::Stub> stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  const std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::StepBatch, v1::StepsReply>> stream_;
  v1::StepsReply reply_;
  grpc::Status end_;
  bool open_ = false;
  bool reading_ = false;
  bool writing_ = false;
  absl::Time answered_ = absl::InfinitePast();  // the last batch
  absl::Status failure_;                        // of the stream
  std::optional<v1::StepBatch> batch_;          // that waits for the stream to open
  std::optional<StepAnswersReader> answers_;    // of the batch under way
};

// Waits for one event and handles it; false if there was none.
bool StepConnections::Connection::HandleEvent(absl::Time deadline) {
  void* tag = nullptr;
  bool ok = false;
  if (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline)) !=
      grpc::CompletionQueue::GOT_EVENT) {
    return false;
  }
  OnEvent(static_cast<Event>(reinterpret_cast<intptr_t>(tag)), ok);
  return true;
}

void StepConnections::Connection::OnEvent(Event event, bool ok) {
  switch (event) {
    case kStart:
    case kRead:
      reading_ = false;
      open_ = ok;
      if (!ok) {
        stream_->Finish(&end_, Tag(kFinish));
      } else if (event == kRead) {
        OnReply();
      } else if (batch_.has_value()) {
        Write();
      }
      break;
    case kWrite:
      writing_ = false;  // one that failed is followed by the end of the reads
      break;
    case kFinish:
      failure_.Update(LostBy(end_));
      queue_.Shutdown();
      break;
  }
}

StepConnections::StepConnections(std::shared_ptr<grpc::Channel> channel, TokenFile* token)
    : channel_(std::move(channel)), token_(token) {}
StepConnections::~StepConnections() = default;

std::unique_ptr<StepConnections::Connection> StepConnections::Take() {
  while (true) {
    std::unique_ptr<Connection> connection;
    absl::Time broke;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (idle_.empty()) break;
      connection = std::move(idle_.back());
      idle_.pop_back();
      broke = broke_;
    }
    if (connection->Usable(broke)) return connection;
  }
  return std::make_unique<Connection>(channel_, token_);
}

void StepConnections::Keep(std::unique_ptr<Connection> connection) {
  const bool usable = connection->Usable(absl::InfinitePast());
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!usable) {
    broke_ = absl::Now();
  } else if (idle_.size() < kIdleMax) {
    idle_.push_back(std::move(connection));
  }
}

StepResults StepConnections::Step(absl::Span<const StepRequest> requests, const Attempt& attempt) {
  const std::vector<StepCut> cuts = CutSteps(requests);
  StepResults results;
  results.reserve(requests.size());
  for (size_t i = 0; i < cuts.size(); i += kAtOnceMax) {
    StepAtOnce(requests, absl::MakeConstSpan(cuts).subspan(i, kAtOnceMax), attempt, &results);
  }
  return results;
}

void StepConnections::StepAtOnce(absl::Span<const StepRequest> requests,
                                 absl::Span<const StepCut> cuts, const Attempt& attempt,
                                 StepResults* results) {
  std::vector<std::unique_ptr<Connection>> connections;
  for (const StepCut& cut : cuts) {
    connections.push_back(Take());
    connections.back()->Send(requests.subspan(cut.first, cut.count), attempt);
  }
  {
    const CancelWatch watch(attempt.cancel, [&] {
      for (const std::unique_ptr<Connection>& connection : connections) connection->Cancel();
    });
    for (size_t i = 0; i < connections.size(); ++i) {
      absl::StatusOr<StepResults> part = connections[i]->Receive(attempt);
      if (!part.ok()) part = StepResultsOf(part.status(), cuts[i].count);
      std::move(part->begin(), part->end(), std::back_inserter(*results));
    }
  }
  for (std::unique_ptr<Connection>& connection : connections) Keep(std::move(connection));
}

}  // namespace annulus
