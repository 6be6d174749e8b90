// Transfer: what a call with tensors holds from its first message to its last: a place among those
// that wait for their clients, bytes once its header is good, and a slot only while it works.
// Of one call and its thread.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "base/status.h"
#include "runtime/server/limits.h"
#include "runtime/server/peer.h"
#include "runtime/service/service.h"

namespace annulus {

// How long a call whose tensors have come waits for a slot.
inline constexpr absl::Duration kSlotPatience = absl::Seconds(1);

class Transfer {
 public:
  Transfer(RpcBounds* bounds, grpc::ServerContext* context, const std::string& peer)
      : peer_(&bounds->admission, peer),
        ticket_(&peer_),
        place_(&bounds->transfers),
        pace_(&bounds->stalls, context),
        taken_(place_.Take(context, peer)) {}

  // RESOURCE_EXHAUSTED names transfers_max: nothing may be read of the call then.
  const absl::Status& status() const { return taken_; }

  // Whether the next message has come, or has gone.
  template <typename Stream, typename Part>
  bool Read(Stream* stream, Part* part) {
    return pace_.Wait(*part, [&] { return stream->Read(part); });
  }
  template <typename Stream, typename Reply, typename... Options>
  bool Write(Stream* stream, const Reply& reply, const Options&... options) {
    return pace_.Wait(reply, [&] { return stream->Write(reply, options...); });
  }

  // The header has come: keeps the bytes of what follows it and of the answer, if the call can be
  // carried out. While no slot is free it is refused now, before its tensors are sent.
  template <typename Request>
  absl::Status Admit(Service* service, const Request& header, const CallContext& call,
                     int64_t bytes) {
    ANNULUS_ASSIGN_OR_RETURN(const int64_t answer_bytes, service->Check(header, call));
    ANNULUS_RETURN_IF_ERROR(ticket_.CheckSlot());
    ANNULUS_RETURN_IF_ERROR(ticket_.Reserve(bytes + answer_bytes));
    return Resume();
  }

  // Has the service work, which needs a slot.
  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Work(Service* service, const Request& request,
                                         const CallContext& call) {
    ANNULUS_RETURN_IF_ERROR(ticket_.Enter(kSlotPatience));
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
  const absl::Status taken_;
};

}  // namespace annulus
