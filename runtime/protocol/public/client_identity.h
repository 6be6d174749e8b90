// ClientIdentity: what a client shows to services, and whom it trusts: its token, its certificate
// and an authority. Files, looked at again while the client lives. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/protocol/public/tls.h"
#include "runtime/protocol/public/token_file.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

struct ClientSecurity {
  ClientTls tls = {};
  std::string token_file = {};  // empty: no token
};

class ClientIdentity {
 public:
  // INVALID_ARGUMENT names the field, its file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<ClientIdentity>> Open(const ClientSecurity& security);

  bool tls() const { return tls_; }
  TokenFile* token() const { return token_.get(); }  // may be null

  // As MakeChannel (channel.h), over TLS if there is any.
  std::shared_ptr<grpc::Channel> ChannelTo(const std::string& endpoint) const;

 private:
  ClientIdentity(bool tls, std::shared_ptr<grpc::ChannelCredentials> credentials,
                 std::unique_ptr<TokenFile> token)
      : tls_(tls), credentials_(std::move(credentials)), token_(std::move(token)) {}

  const bool tls_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  const std::unique_ptr<TokenFile> token_;
};

}  // namespace annulus
