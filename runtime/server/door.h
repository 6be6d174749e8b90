// Door: who comes in by a server's port, and whether they may make the call that they make.
// Handlers ask before they reserve or read anything. A caller proves itself with a bearer token
// (metadata "authorization: Bearer …") or, without one, with the certificate of its connection.
// Refusals are counted, and logged up to some each second. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/line_limit.h"
#include "runtime/identity/caller.h"

namespace grpc {
class ServerContext;
}  // namespace grpc

namespace annulus {

class AuditLog;
class Authenticator;

// The names in a connection's certificate, if the peer had to show one.
std::vector<std::string> CertificateNames(const grpc::ServerContext& rpc);

// PERMISSION_DENIED names the call, the caller's role and the roles that may.
absl::Status CheckMay(const Caller& caller, absl::string_view call, Access access);

class Door {
 public:
  struct Counts {
    uint64_t unauthenticated = 0;
    uint64_t denied = 0;
  };

  // Both outlive this. authenticator nullptr: nobody is asked, and everybody may do everything;
  // audit nullptr: nobody is told who was refused.
  explicit Door(Authenticator* authenticator, AuditLog* audit = nullptr)
      : authenticator_(authenticator), audit_(audit) {}

  bool asks() const { return authenticator_ != nullptr; }

  // UNAUTHENTICATED reads the same whatever is wrong with what the caller brings; the log says it.
  // PERMISSION_DENIED as CheckMay.
  absl::StatusOr<Caller> Admit(const grpc::ServerContext& rpc, absl::string_view call,
                               Access access);

  // UNAUTHENTICATED if the caller brings a token and it is not good: for what everybody may ask.
  absl::Status CheckToken(const grpc::ServerContext& rpc, absl::string_view call);

  // A call of someone who was let in has had this outcome; `detail` is for people.
  void Audit(absl::string_view call, const Caller& caller, absl::StatusCode outcome,
             absl::string_view detail) const;

  Counts counts() const { return {unauthenticated_.load(), denied_.load()}; }

 private:
  static constexpr int kToldPerSecond = 10;

  absl::StatusOr<Caller> Identify(const grpc::ServerContext& rpc) const;
  absl::Status Refuse(const grpc::ServerContext& rpc, absl::string_view call,
                      const absl::Status& why);
  void Tell(const grpc::ServerContext& rpc, absl::string_view call, absl::string_view why);

  Authenticator* const authenticator_;
  AuditLog* const audit_;
  std::atomic<uint64_t> unauthenticated_ = 0;
  std::atomic<uint64_t> denied_ = 0;
  std::mutex mutex_;
  LineLimit told_{kToldPerSecond, absl::Seconds(1)};  // under mutex_
};

}  // namespace annulus
