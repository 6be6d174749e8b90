#include "runtime/server/step_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/sync_stream.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/protocol/public/step_parser.h"
#include "runtime/server/call_cost.h"
#include "runtime/server/handlers.h"

namespace annulus {
namespace {

constexpr const auto& kCall = CallOf<StepsRequest>();
constexpr absl::Duration kReopenAfter = absl::Milliseconds(1);

// What a stream keeps of its batches' memory while it is idle, which counts among no other bound.
constexpr size_t kKeptBytesMax = 512 << 10;

}  // namespace

struct StepService::Batches {
  grpc::ByteBuffer bytes;  // of the batch that has come
  v1::StepBatch parsed;    // its memory is used again
  size_t kept_bytes = 0;   // of that, at most

  absl::StatusOr<StepCount> Count() {
    grpc::ProtoBufferReader reader(&bytes);
    return CountSteps(&reader);
  }

  // Requests borrow from `parsed`.
  std::vector<absl::StatusOr<StepRequest>> Parse(const StepCount& count) {
    kept_bytes += bytes.Length() + static_cast<size_t>(count.parsed_bytes);
    std::vector<std::pair<size_t, absl::Status>> malformed;
    {
      grpc::ProtoBufferReader reader(&bytes);
      malformed = ParseSteps(&reader, &parsed);
    }
    bytes.Clear();
    std::vector<absl::StatusOr<StepRequest>> requests = FromProto(parsed);
    for (const auto& [index, why] : malformed) requests[index] = why;
    return requests;
  }

  // The batch has been answered. What is kept is measured where it may be too much, unless the
  // batch was large: that takes longer than to have its memory anew.
  void Trim() {
    bytes.Clear();
    if (kept_bytes <= kKeptBytesMax) return;
    if (kept_bytes <= 2 * kKeptBytesMax) kept_bytes = parsed.SpaceUsedLong();
    if (kept_bytes <= kKeptBytesMax / 2) return;
    parsed = v1::StepBatch();
    kept_bytes = 0;
  }
};

// An idle stream does not outlive its caller's token.
bool StepService::Read(grpc::ServerContext* context, Stream* stream, const Caller& caller,
                       grpc::ByteBuffer* bytes) {
  std::optional<StallWatch::Wait> wait;
  if (caller.expires != absl::InfiniteFuture()) {
    wait.emplace(&bounds_->stalls, context, caller.expires);
  }
  return stream->Read(bytes);
}

absl::Status StepService::Serve(grpc::ServerContext* context, Stream* stream) {
  ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
  absl::StatusOr<Caller> caller = door_->Admit(*context, kCall.name, kCall.access);
  ANNULUS_RETURN_IF_ERROR(caller.status());
  const std::string peer_name = PeerOf(*caller);
  Admission::Peer peer(&bounds_->admission, peer_name, TurnOf(*caller));
  Places::Place place(&bounds_->step_streams);
  ANNULUS_RETURN_IF_ERROR(
      place.Take(context, peer_name, *caller, "streams_max", caller->quotas.streams_max));
  Batches batches;
  bool broken = false;
  while (!broken && Read(context, stream, *caller, &batches.bytes)) {
    if (door_->asks()) {
      caller = door_->Admit(*context, kCall.name, kCall.access);
      if (!caller.ok()) break;
    }
    const bool serving = place.SetBusy(true);
    ANNULUS_ASSIGN_OR_RETURN(const StepCount count, batches.Count());
    const StepResults results =
        serving ? Answer(context, *caller, &peer, count, &batches)
                : StepResultsOf(absl::UnavailableError("the server closes the stream"),
                                static_cast<size_t>(count.steps));
    for (const auto& result : results) bounds_->refusals.Note(result.status()).IgnoreError();
    broken = !SendAnswers(results, [&](const v1::StepsReply& reply) {
      const StallWatch::Wait wait(&bounds_->stalls, context);
      return stream->Write(reply);
    });
    batches.Trim();
    place.SetBusy(false);
  }
  if (!absl::IsUnauthenticated(caller.status())) return caller.status();
  return WithRetryAfter(
      absl::UnauthenticatedError("authorization: not accepted any more; expected that the stream "
                                 "is opened again with a fresh token"),
      kReopenAfter);
}

StepResults StepService::Answer(grpc::ServerContext* context, const Caller& caller,
                                Admission::Peer* peer, const StepCount& count, Batches* batches) {
  Admission::Ticket ticket(peer);
  const auto steps = static_cast<size_t>(count.steps);
  const auto bytes = static_cast<int64_t>(batches->bytes.Length()) + count.parsed_bytes;
  if (absl::Status status = ticket.Reserve(bytes); !status.ok()) {
    return StepResultsOf(status, steps);
  }
  const absl::Status may_append = CheckMay(caller, "append", Access::kWrite);
  std::vector<absl::StatusOr<StepRequest>> requests = batches->Parse(count);
  StepResults results = StepResultsOf(absl::InternalError("not tried"), steps);
  std::vector<StepRequest> good;
  good.reserve(requests.size());
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
  call.trace = ParseTraceparent(batches->parsed.traceparent()).value_or(TraceOf(*context));
  if (batches->parsed.time_left_us() != 0) {
    call.deadline = absl::Now() + absl::Microseconds(batches->parsed.time_left_us());
  }
  if (absl::Status turn = ticket.Enter({CostOf(good), call.deadline}); !turn.ok()) {
    return StepResultsOf(turn, steps);
  }
  call.cancelled = CallerGone(context);
  StepResults answers = StepResultsOf(service_->Call(StepsRequest{good}, call), good.size());
  if (good.size() == results.size()) return answers;
  for (size_t i = 0; i < index.size(); ++i) results[index[i]] = std::move(answers[i]);
  return results;
}

}  // namespace annulus
