// Transfer: what a call with tensors holds from its first message to its last: a place among those
// that wait for their clients, bytes once its header is good, and a slot only while it works.
// Of one call and its thread.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/server/call_cost.h"
#include "runtime/server/limits.h"
#include "runtime/server/stream_part.h"
#include "runtime/service/service.h"

namespace annulus {

class Transfer {
 public:
  Transfer(RpcBounds* bounds, grpc::ServerContext* context, const Caller& caller)
      : Transfer(bounds, context, caller, PeerOf(caller)) {}
  Transfer(RpcBounds* bounds, grpc::ServerContext* context, const Caller& caller,
           const std::string& peer)
      : peer_(&bounds->admission, peer, TurnOf(caller)),
        ticket_(&peer_),
        place_(&bounds->transfers),
        pace_(&bounds->stalls, context),
        taken_(place_.Take(context, peer)) {}

  // RESOURCE_EXHAUSTED names transfers_max: nothing may be read of the call then.
  const absl::Status& status() const { return taken_; }

  // Whether the next message has come, or has gone. One that is none comes as an empty one.
  template <typename Stream, typename Part>
  bool Read(Stream* stream, Part* part) {
    return ReadPart(&pace_, stream, part);
  }
  template <typename Stream, typename Reply, typename... Options>
  bool Write(Stream* stream, const Reply& reply, const Options&... options) {
    return pace_.Wait(reply, [&] { return stream->Write(reply, options...); });
  }

  // The header has come: keeps the bytes of what follows it and of the answer, if the call can be
  // carried out. If its turn would come too late it is refused now, before its tensors are sent.
  template <typename Request>
  absl::Status Admit(Service* service, const Request& header, const CallContext& call,
                     int64_t bytes) {
    ANNULUS_ASSIGN_OR_RETURN(size_, service->Check(header, call));
    ANNULUS_RETURN_IF_ERROR(ticket_.CheckTurn({CostOf(header, size_), call.deadline}));
    ANNULUS_RETURN_IF_ERROR(ticket_.Reserve(bytes + size_.answer_bytes));
    return Resume();
  }

  // Has the service work, which needs a slot: waits for the call's turn.
  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Work(Service* service, const Request& request,
                                         const CallContext& call) {
    ANNULUS_RETURN_IF_ERROR(ticket_.Enter({CostOf(request, size_), call.deadline}));
    auto answer = service->Call(request, call);
    ticket_.Leave();
    return answer;
  }

  // Between messages of a stream that may stay open: the client owes nothing, and the place may go.
  absl::Status Resume() {
    if (place_.SetBusy(true)) return absl::OkStatus();
    return absl::CancelledError("the call was idle while others needed its place");
  }
  void Pause() {
    pace_.Restart();
    place_.SetBusy(false);
  }

 private:
  Admission::Peer peer_;
  Admission::Ticket ticket_;
  Places::Place place_;
  ClientPace pace_;
  CallSize size_;
  const absl::Status taken_;
};

}  // namespace annulus
