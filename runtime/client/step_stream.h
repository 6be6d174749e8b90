// StepStream: the client's side of Annulus.Steps: one stream that is opened with the first step and
// kept. Batches of any threads share it and are answered by id. When it breaks, the steps under way
// fail with UNAVAILABLE, and the next one opens another. Thread-safe.
#pragma once

#include <memory>
#include <mutex>

#include "runtime/client/transport.h"
#include "runtime/rpc/annulus.grpc.pb.h"

namespace annulus {

class StepStream {
 public:
  explicit StepStream(v1::Annulus::Stub* stub);  // outlives this
  ~StepStream();                                 // no step may be under way

  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt);

 private:
  class Connection;

  std::shared_ptr<Connection> Current();

  v1::Annulus::Stub* const stub_;
  std::mutex mutex_;
  std::shared_ptr<Connection> connection_;
};

}  // namespace annulus
