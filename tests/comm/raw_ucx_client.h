// Somebody who speaks UCX's C API and knows how a fabric's messages look, and is none: sends what
// it likes to a fabric's address. One thread.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/ucx/ucx_handles.h"
#include "comm/ucx/ucx_messenger.h"
#include "tests/catch.h"

namespace annulus {

class RawUcxClient {
 public:
  explicit RawUcxClient(const std::string& victim) {
    auto address = UcxAddress::Parse(victim);
    REQUIRE(address.ok());
    victim_ = *address;
    auto context = MakeUcxContext({});
    REQUIRE(context.ok());
    context_ = *std::move(context);
    auto worker = MakeUcxWorker(context_.get(), {});
    REQUIRE(worker.ok());
    worker_ = *std::move(worker);
    auto own = UcxWorkerAddress(worker_.get());
    REQUIRE(own.ok());
    own_.worker = *own;
    own_.fabric = UcxIdentityOf(farewell_);
    // What is sent back is of no interest, but UCX crashes where nobody takes it.
    for (unsigned am = 0; am < 3; ++am) {
      ucp_am_handler_param_t param = {};
      param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB;
      param.id = am;
      param.cb = [](void*, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) {
        return UCS_OK;
      };
      REQUIRE(ucp_worker_set_am_recv_handler(worker_.get(), &param) == UCS_OK);
    }
    Connect();
  }
  ~RawUcxClient() { Close(); }

  // A real address, where nobody answers.
  std::string address() const { return own_.ToString(); }
  const UcxAddress& victim() const { return victim_; }
  // Whether what it sends still arrives somewhere.
  bool connected() const { return endpoint_ != nullptr && !failed_; }

  void Connect() {
    Close();
    failed_ = false;
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(victim_.worker.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t) {
      *static_cast<bool*>(arg) = true;
    };
    params.err_handler.arg = &failed_;
    REQUIRE(ucp_ep_create(worker_.get(), &params, &endpoint_) == UCS_OK);
    ucp_request_param_t none = {};
    Await(ucp_ep_flush_nbx(endpoint_, &none));
  }

  // Returns once UCX has taken it.
  void Send(unsigned am, absl::string_view header, absl::string_view data, unsigned flags) {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = flags;
    Await(ucp_am_send_nbx(endpoint_, am, header.data(), header.size(), data.data(), data.size(),
                          &param));
    if (++sent_ % 64 == 0) Progress();
  }
  void SendEager(UcxAm am, absl::string_view header, absl::string_view data = {}) {
    Send(static_cast<unsigned>(am), header, data, UCP_AM_SEND_FLAG_EAGER);
  }

  // Until the other side has all that was sent.
  void Flush() {
    ucp_request_param_t none = {};
    Await(ucp_ep_flush_nbx(endpoint_, &none));
  }
  void Progress() {
    while (ucp_worker_progress(worker_.get()) != 0) {
    }
  }

 private:
  void Await(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    const absl::Time end = absl::Now() + absl::Seconds(20);
    while (ucp_request_check_status(request) == UCS_INPROGRESS && absl::Now() < end) Progress();
    REQUIRE(ucp_request_check_status(request) != UCS_INPROGRESS);
    ucp_request_free(request);
  }
  void Close() {
    if (endpoint_ == nullptr) return;
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    Await(ucp_ep_close_nbx(std::exchange(endpoint_, nullptr), &param));
  }

  LinkKey farewell_ = LinkKey::Random();
  UcxAddress victim_;
  UcxAddress own_;
  UcxContext context_;
  UcxWorker worker_;
  ucp_ep_h endpoint_ = nullptr;
  bool failed_ = false;
  uint64_t sent_ = 0;
};

}  // namespace annulus
