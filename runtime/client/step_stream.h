// StepStream: the client's side of Annulus.Steps: one stream that is opened with the first step and
// kept. Batches of any threads share it and are answered by id. When it breaks, the steps under way
// fail with UNAVAILABLE, and the next one opens another. Thread-safe.
#pragma once

#include <memory>
#include <mutex>

#include "runtime/client/transport.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

class StepStream {
 public:
  explicit StepStream(std::shared_ptr<grpc::Channel> channel);
  ~StepStream();  // no step may be under way

  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt);

 private:
  class Connection;

  std::shared_ptr<Connection> Current();

  const std::shared_ptr<grpc::Channel> channel_;
  std::mutex mutex_;
  std::shared_ptr<Connection> connection_;
};

}  // namespace annulus
