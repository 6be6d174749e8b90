// How this project sets gRPC up where both ends must agree, and how it is kept quiet.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/limits.h"

namespace grpc {
class Channel;
class ChannelCredentials;
class ClientContext;
}  // namespace grpc

namespace annulus {

class TokenFile;

// A server accepts pings this often; clients ping less often than that.
inline constexpr int kPingIntervalMinMs = 250;

// How far a sender may be ahead of its receiver, on each stream and at both ends. gRPC's own
// estimate stays near 64 KiB where the way is short, and a bulk transfer would wait for its
// receiver's word every few tens of µs.
inline constexpr int kStreamWindowBytes = 4 << 20;

// Whether `text` is "host:port" ("[host]:port" for IPv6) with a port of at most 65535: gRPC would
// take a larger one modulo 65536. INVALID_ARGUMENT names `field`.
absl::Status CheckHostPort(absl::string_view field, absl::string_view text);

// Keeps gRPC started until the process ends. It shuts itself down when the last channel and server
// of a process go, and then may wait 10 s for a poller of its own that a large write has left.
void HoldGrpc();
// FAILED_PRECONDITION in a process forked from one that held gRPC: there its calls would wait for
// threads that are not there.
absl::Status CheckNotForked();

// A channel of its own to "host:port", not connected yet. Proxies named in the environment are not
// used. Without credentials it is in plain text.
std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& endpoint, std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

// How a worker tells that its data port speaks TLS: "tls://host:port", else "host:port".
inline constexpr char kTlsScheme[] = "tls://";

// The public protocol's version, which a client names in this entry of a call's metadata. A call
// that names none is of version 1, so that only its first call says so: each entry costs every call
// some µs.
inline constexpr char kProtocolKey[] = "annulus-protocol";
inline constexpr char kProtocolVersion[] = "1";
inline constexpr char kProtocolUnnamed[] = "1";  // of a call that names none

// In the initial metadata of an upload whose grant is claimed (data.proto).
inline constexpr char kClaimedKey[] = "annulus-claimed";

// Where a call's metadata has its caller's token.
inline constexpr char kAuthorizationKey[] = "authorization";
inline constexpr char kBearer[] = "Bearer ";

// Names the version where it must be named or this is the `first` call of a client, and brings the
// token if there is one. Infinite times leave the call without a deadline.
void SetUpCall(absl::Time deadline, grpc::ClientContext* context, TokenFile* token = nullptr,
               bool first = false);
// Says which span the call belongs to; nothing where that is empty.
void SetUpTrace(const std::string& traceparent, grpc::ClientContext* context);

// Stops gRPC and protobuf from writing to stderr, for programs whose stderr is for people. Call it
// first in main.
void SilenceLibraries();

}  // namespace annulus
