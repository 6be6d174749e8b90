// Append straight to the workers: the coordinator admits each piece and grants it, the client sends
// every worker its part, and the coordinator commits the piece once all have stored theirs. No
// tensor passes through the coordinator. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "runtime/client/transport.h"
#include "runtime/service/calls.h"
#include "sharding/layout.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {
namespace v1 {
class AppendGrant;
}  // namespace v1

class ClientIdentity;

class DirectAppends {
 public:
  // `identity` outlives this; chunk_bytes: of one message.
  DirectAppends(std::shared_ptr<grpc::Channel> coordinator, const ClientIdentity* identity,
                int64_t chunk_bytes);

  // Begins with the piece after attempt.pieces_done and counts there. Errors as the service's;
  // UNAVAILABLE names a worker's data port that does not answer.
  absl::StatusOr<AppendResult> Append(const AppendRequest& request, const Attempt& attempt);

 private:
  // OK also when the coordinator has ended the append meanwhile; then it says why.
  absl::Status Upload(const v1::AppendGrant& grant, const AppendRequest& piece,
                      const Attempt& attempt);
  absl::Status UploadPart(const AppendGrant& grant, const ContextSpec& spec, const Layout& layout,
                          size_t holder, const AppendRequest& piece, const Attempt& attempt);
  absl::StatusOr<std::shared_ptr<grpc::Channel>> ChannelTo(const std::string& address);

  const std::shared_ptr<grpc::Channel> coordinator_;
  const ClientIdentity* const identity_;
  const int64_t chunk_bytes_;
  std::mutex mutex_;
  std::unique_ptr<ThreadPool> pool_;  // under mutex_; made by the first append
  std::map<std::string, std::shared_ptr<grpc::Channel>> workers_;  // under mutex_, by address
};

}  // namespace annulus
