// ClientIdentity: what a client shows to services, and whom it trusts: its token, its certificate
// and an authority. Files, looked at again while the client lives. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/protocol/public/tls.h"
#include "runtime/protocol/public/tls_files.h"
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
  TlsFiles::Reading tls_files() const { return files_->reading(); }

  // As MakeChannel (channel.h), over TLS if there is any. This outlives it.
  std::shared_ptr<grpc::Channel> ChannelTo(const std::string& endpoint) const;

 private:
  ClientIdentity(bool tls, std::unique_ptr<TlsFiles> files, std::unique_ptr<TokenFile> token)
      : tls_(tls),
        files_(std::move(files)),
        credentials_(files_->ChannelCredentials()),
        token_(std::move(token)) {}

  const bool tls_;
  const std::unique_ptr<TlsFiles> files_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;  // of all channels
  const std::unique_ptr<TokenFile> token_;
};

}  // namespace annulus
