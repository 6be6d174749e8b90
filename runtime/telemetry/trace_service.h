// TraceService: a Service whose calls are spans of the traces that callers are in: each call is
// told to a sink once it is over, and what it asks of workers is within it. A call that comes
// without a trace begins one; one whose caller does not record its trace is not told. Thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "base/trace_context.h"
#include "runtime/service/service.h"

namespace annulus {

class TraceService final : public Service {
 public:
  // `inner` outlives this.
  TraceService(Service* inner, SpanSink sink) : inner_(inner), sink_(std::move(sink)) {}

  absl::StatusOr<CallSize> Check(const AppendRequest& header, const CallContext& call) override {
    return inner_->Check(header, call);
  }
  absl::StatusOr<CallSize> Check(const AttendRequest& header, const CallContext& call) override {
    return inner_->Check(header, call);
  }

 private:
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override;

  Service* const inner_;
  const SpanSink sink_;
};

}  // namespace annulus
