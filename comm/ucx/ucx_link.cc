#include <utility>

#include "comm/ucx/ucx_transport.h"

namespace annulus {
namespace {

// Enough to keep tcp and shared memory busy; little enough that an abort soon has them back.
constexpr size_t kWindowBytes = size_t{1} << 20;

}  // namespace

UcxLink::UcxLink(UcxTransport& transport, UcxAddress remote)
    : transport_(transport), remote_(std::move(remote)) {}

void UcxLink::Open() {
  if (state_ != State::kWiring) return;  // closed before it began
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(remote_.worker.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
    auto& link = *static_cast<UcxLink*>(arg);
    link.Act([&] { link.GiveUp(UcxError("the peer's connection failed", status)); });
  };
  params.err_handler.arg = this;
  ucs_status_t status = ucp_ep_create(transport_.worker_.get(), &params, &endpoint_);
  if (status != UCS_OK) {
    endpoint_ = nullptr;
    Wired(status);
    return;
  }
  ucp_request_param_t flush = {};
  flush.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  flush.user_data = new std::shared_ptr<UcxLink>(shared_from_this());
  flush.cb.send = [](void* request, ucs_status_t result, void* user_data) {
    const std::unique_ptr<std::shared_ptr<UcxLink>> link(
        static_cast<std::shared_ptr<UcxLink>*>(user_data));
    ucp_request_free(request);
    --(*link)->in_flight_;
    (*link)->Act([&] { (*link)->Wired(result); });
  };
  ++in_flight_;
  const ucs_status_ptr_t request = ucp_ep_flush_nbx(endpoint_, &flush);
  if (UCS_PTR_IS_PTR(request)) return;
  --in_flight_;
  delete static_cast<std::shared_ptr<UcxLink>*>(flush.user_data);
  Wired(UCS_PTR_STATUS(request));
}

void UcxLink::Wired(ucs_status_t status) {
  if (state_ == State::kClosing && status == UCS_OK) return SayGoodbye();
  if (state_ != State::kWiring) return;
  if (status == UCS_OK) {
    state_ = State::kUp;
    Pump();
  } else {
    GiveUp(UcxError("connecting", status));
  }
}

void UcxLink::Send(UcxSend send) {
  if (state_ == State::kDown || state_ == State::kClosing) {
    if (send.done) send.done(false);
    return;
  }
  unsent_bytes_ += send.size_bytes;
  queue_.push_back(std::move(send));
  Pump();
}

void UcxLink::Send(Piece piece) {
  UcxSend send;
  send.am = UcxAm::kExchange;
  send.header = UcxHeader(piece.header, piece.text);
  send.data = piece.data;
  send.size_bytes = piece.size_bytes;
  send.owner = piece.owner;
  send.done = std::move(piece.done);
  Send(std::move(send));
}

void UcxLink::Pump() {
  if (transport_.in_progress_) {
    transport_.pumping_.insert(shared_from_this());
    return;
  }
  if (state_ == State::kClosing) return SayGoodbye();
  while (state_ == State::kUp && !queue_.empty() && in_flight_bytes_ < kWindowBytes) {
    UcxSend send = std::move(queue_.front());
    queue_.pop_front();
    Issue(std::move(send));
  }
}

void UcxLink::Issue(UcxSend send) {
  if (send.keep.empty() && send.size_bytes != 0) {
    send.keep = Buffer::Copy(send.data, send.size_bytes);
    send.data = send.keep.data();
  }
  // From here on no memory but the request's own is touched, whatever UCX and the peer do.
  if (send.done) std::exchange(send.done, nullptr)(true);
  in_flight_bytes_ += send.size_bytes;
  ++in_flight_;
  ++transport_.sends_in_flight_;
  // The request owns the header and the payload until UCX is done with them.
  auto request = std::make_unique<Request>(Request{shared_from_this(), std::move(send)});
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.user_data = request.get();
  param.cb.send = [](void* ucx_request, ucs_status_t status, void* user_data) {
    const std::unique_ptr<Request> done(static_cast<Request*>(user_data));
    ucp_request_free(ucx_request);
    UcxLink& link = *done->link;
    link.Act([&] {
      link.Complete(done->send, status);
      link.Pump();
    });
  };
  const UcxSend& out = request->send;
  const ucs_status_ptr_t result =
      ucp_am_send_nbx(endpoint_, static_cast<unsigned>(out.am), out.header.data(),
                      out.header.size(), out.data, out.size_bytes, &param);
  if (UCS_PTR_IS_PTR(result)) {
    request.release();
  } else {
    Complete(request->send, UCS_PTR_STATUS(result));
  }
}

void UcxLink::Complete(const UcxSend& send, ucs_status_t status) {
  in_flight_bytes_ -= send.size_bytes;
  unsent_bytes_ -= send.size_bytes;
  --in_flight_;
  --transport_.sends_in_flight_;
  if (status != UCS_OK && state_ == State::kUp) GiveUp(UcxError("sending", status));
}

void UcxLink::DropUnsent(const void* owner) {
  std::deque<UcxSend> kept;
  std::deque<UcxSend> dropped;
  for (UcxSend& send : queue_) {
    (send.owner == owner ? dropped : kept).push_back(std::move(send));
  }
  queue_ = std::move(kept);
  for (UcxSend& send : dropped) {
    unsent_bytes_ -= send.size_bytes;
    if (send.done) send.done(false);
  }
}

void UcxLink::DropQueue() {
  std::deque<UcxSend> dropped = std::move(queue_);
  queue_.clear();
  for (UcxSend& send : dropped) {
    unsent_bytes_ -= send.size_bytes;
    if (send.done) send.done(false);
  }
}

void UcxLink::Close(UcxAm am, std::string goodbye) {
  if (state_ == State::kDown || state_ == State::kClosing) return;
  on_down = nullptr;
  const bool wired = state_ == State::kUp;
  state_ = State::kClosing;
  DropQueue();
  UcxSend send;
  send.am = am;
  send.header = std::move(goodbye);
  queue_.push_back(std::move(send));
  if (wired) SayGoodbye();
}

void UcxLink::SayGoodbye() {
  if (transport_.in_progress_) {
    transport_.pumping_.insert(shared_from_this());
    return;
  }
  for (UcxSend& send : std::exchange(queue_, {})) Issue(std::move(send));
}

void UcxLink::Leave(const absl::Status& why) {
  if (state_ == State::kDown || state_ == State::kClosing) return;
  state_ = State::kClosing;
  DropQueue();
  if (on_down) std::exchange(on_down, nullptr)(why);
}

void UcxLink::GiveUp(absl::Status why) {
  transport_.failures_.push_back({shared_from_this(), std::move(why)});
}

void UcxLink::Fail(const absl::Status& why) {
  if (state_ == State::kDown) return;
  state_ = State::kDown;
  CloseEndpoint();
  DropQueue();
  if (on_down) std::exchange(on_down, nullptr)(why);
}

void UcxLink::CloseEndpoint() {
  if (endpoint_ == nullptr) return;
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.user_data = &transport_;
  param.cb.send = [](void* request, ucs_status_t, void* user_data) {
    ucp_request_free(request);
    --static_cast<UcxTransport*>(user_data)->closes_in_flight_;
  };
  if (UCS_PTR_IS_PTR(ucp_ep_close_nbx(std::exchange(endpoint_, nullptr), &param))) {
    ++transport_.closes_in_flight_;
  }
}

}  // namespace annulus
