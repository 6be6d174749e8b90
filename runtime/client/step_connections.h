// StepConnections: the client's side of Annulus.Steps. A stream carries one batch at a time and is
// kept open for the next one: there are as many streams as batches have been under way at once.
// When one breaks, its batch fails with UNAVAILABLE, and the next batch opens another. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "runtime/client/transport.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

struct StepCut;
class TokenFile;

class StepConnections {
 public:
  // `token`, with which streams are opened, outlives this and may be null.
  StepConnections(std::shared_ptr<grpc::Channel> channel, TokenFile* token);
  ~StepConnections();  // no step may be under way

  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt);

 private:
  class Connection;

  // Appends what comes of some of a call's batches, which are under way together.
  void StepAtOnce(absl::Span<const StepRequest> requests, absl::Span<const StepCut> cuts,
                  const Attempt& attempt, StepResults* results);

  std::unique_ptr<Connection> Take();
  void Keep(std::unique_ptr<Connection> connection);

  const std::shared_ptr<grpc::Channel> channel_;
  TokenFile* const token_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Connection>> idle_;  // the last one used at the back
  absl::Time broke_ = absl::InfinitePast();        // when the last one did
};

}  // namespace annulus
