#include "runtime/server/door.h"

#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "runtime/identity/audit_log.h"
#include "runtime/identity/authenticator.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {

std::vector<std::string> CertificateNames(const grpc::ServerContext& rpc) {
  std::vector<std::string> names;
  const std::shared_ptr<const grpc::AuthContext> peer = rpc.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return names;
  for (const char* property : {"x509_subject_alternative_name", "x509_common_name"}) {
    for (const grpc::string_ref& name : peer->FindPropertyValues(property)) {
      names.emplace_back(name.data(), name.size());
    }
  }
  return names;
}

absl::Status CheckMay(const Caller& caller, absl::string_view call, Access access) {
  if (May(caller.role, access)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("role: ", Name(caller.role), ", which may not ",
                                                  call, "; expected one of ",
                                                  RolesThatMay(access)));
}

absl::StatusOr<Caller> Door::Identify(const grpc::ServerContext& rpc) const {
  const auto [begin, end] = rpc.client_metadata().equal_range(kAuthorizationKey);
  if (begin == end) {
    if (!authenticator_->knows_certificates()) {
      return absl::UnauthenticatedError("authorization: none; expected a bearer token");
    }
    return authenticator_->OfCertificate(CertificateNames(rpc));
  }
  absl::string_view token(begin->second.data(), begin->second.size());
  if (std::next(begin) != end || !absl::StartsWithIgnoreCase(token, kBearer)) {
    return absl::UnauthenticatedError("authorization: not one of the form Bearer TOKEN");
  }
  token.remove_prefix(absl::string_view(kBearer).size());
  return authenticator_->OfToken(token, absl::Now());
}

absl::StatusOr<Caller> Door::Admit(const grpc::ServerContext& rpc, absl::string_view call,
                                   Access access) {
  if (authenticator_ == nullptr) {
    Caller anybody;
    anybody.client = rpc.peer();
    return anybody;
  }
  absl::StatusOr<Caller> caller = Identify(rpc);
  if (!caller.ok()) return Refuse(rpc, call, caller.status());
  caller->client = rpc.peer();
  if (absl::Status may = CheckMay(*caller, call, access); !may.ok()) {
    ++denied_;
    Tell(rpc, call, absl::StrCat(caller->name, ": ", may.message()));
    Audit(call, *caller, may.code(), may.message());
    return may;
  }
  return caller;
}

absl::Status Door::CheckToken(const grpc::ServerContext& rpc, absl::string_view call) {
  if (authenticator_ == nullptr) return absl::OkStatus();
  if (rpc.client_metadata().count(kAuthorizationKey) == 0) return absl::OkStatus();
  const absl::Status known = Identify(rpc).status();
  return known.ok() ? known : Refuse(rpc, call, known);
}

absl::Status Door::Refuse(const grpc::ServerContext& rpc, absl::string_view call,
                          const absl::Status& why) {
  ++unauthenticated_;
  Tell(rpc, call, why.message());
  Caller stranger{"", "", Role::kReader};
  stranger.client = rpc.peer();
  Audit(call, stranger, absl::StatusCode::kUnauthenticated, why.message());
  return absl::UnauthenticatedError(
      "authorization: not accepted; expected a bearer token that the service knows and that is "
      "valid now");
}

void Door::Audit(absl::string_view call, const Caller& caller, absl::StatusCode outcome,
                 absl::string_view detail) const {
  if (audit_ != nullptr) audit_->Tell(call, caller, outcome, 0, detail);
}

void Door::Tell(const grpc::ServerContext& rpc, absl::string_view call, absl::string_view why) {
  std::optional<int64_t> left_out;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    left_out = told_.Admit(absl::Now());
  }
  if (!left_out.has_value()) return;
  Log(LogLevel::kWarning, "call refused",
      {{"call", call}, {"client", rpc.peer()}, {"why", why}, {"refusals_left_out", *left_out}});
}

}  // namespace annulus
