// Join: how a worker's process gets into a cluster, by the coordinator's port for clients. Who may
// not is told nothing of the workers' network. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/link_key.h"
#include "runtime/protocol/public/client_identity.h"
#include "runtime/server/limits.h"

namespace grpc {
class Channel;
class ServerContext;
class Service;
}  // namespace grpc

namespace annulus {

class Door;

// Where workers connect to, and the key that they name there.
struct Admittance {
  std::string address;
  LinkKey key;
};

struct JoinOptions {
  // A worker is let in: `before` is a key that it says it has, in bytes; `data_address` is checked.
  std::function<Admittance(const std::string& before, const std::string& data_address)> admit;
  // Hosts that any worker may name in its data address, with * for any part: "10.1.*",
  // "*.pool.svc".
  std::vector<std::string> data_hosts = {};
};

// INVALID_ARGUMENT unless uploads to `data_address` ("[tls://]HOST:PORT", or empty for none) reach
// the machine at `caller` (an IP address) or one of `names`, or its host fits one of `hosts`.
absl::Status CheckDataAddress(const std::string& data_address, const std::string& caller,
                              const std::vector<std::string>& names,
                              const std::vector<std::string>& hosts);

// The handlers of Workers (workers.proto). What is pointed to outlives them.
std::unique_ptr<grpc::Service> MakeJoinHandlers(const JoinOptions& options, Door* door,
                                                RpcBounds* bounds);

// A worker's side.
class JoinClient {
 public:
  // `endpoint` is "host:port" and need not answer yet. INVALID_ARGUMENT names a file of `security`.
  static absl::StatusOr<std::unique_ptr<JoinClient>> Make(const std::string& endpoint,
                                                          const ClientSecurity& security);

  // Waits for a coordinator until the deadline. A key that an earlier call got stays while it is
  // good. Errors name the endpoint: UNAVAILABLE and DEADLINE_EXCEEDED where nobody answered.
  absl::StatusOr<Admittance> Join(const std::string& data_address, absl::Time deadline);

  TlsFiles::Reading tls() const { return identity_->tls_files(); }

 private:
  JoinClient(const std::string& endpoint, std::unique_ptr<ClientIdentity> identity);

  const std::string endpoint_;
  const std::unique_ptr<ClientIdentity> identity_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::mutex mutex_;
  std::string key_;  // under mutex_
};

}  // namespace annulus
