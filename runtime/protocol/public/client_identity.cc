#include "runtime/protocol/public/client_identity.h"

#include <grpcpp/channel.h>

#include "base/status.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {

absl::StatusOr<std::unique_ptr<ClientIdentity>> ClientIdentity::Open(
    const ClientSecurity& security) {
  HoldGrpc();
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<TokenFile> token, TokenFile::Open(security.token_file));
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<TlsFiles> files, TlsFiles::Open(security.tls));
  return std::unique_ptr<ClientIdentity>(
      new ClientIdentity(security.tls.on(), std::move(files), std::move(token)));
}

std::shared_ptr<grpc::Channel> ClientIdentity::ChannelTo(const std::string& endpoint) const {
  return MakeChannel(endpoint, credentials_);
}

}  // namespace annulus
