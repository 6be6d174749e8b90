#include "runtime/protocol/public/channel.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/trace_context.h"
#include "runtime/protocol/public/token_file.h"

namespace annulus {
namespace {

// Cluster status is one message and grows with contexts and layers.
constexpr int kReplyBytesMax = 64 << 20;

std::atomic<pid_t> grpc_process = 0;  // that holds gRPC; 0: none does

void Ignore(gpr_log_func_args*) {}

// The first time that a second thread waits for one of Abseil's locks, Abseil looks for a file that
// few machines have, and leaves errno changed. gRPC 1.51 takes such a lock between connect() and
// reading its errno: that connection would fail with "No such file or directory".
void LetTwoWait() {
  absl::Mutex mutex;
  bool first = false;
  bool over = false;
  std::thread waiter([&] {
    const absl::MutexLock lock(&mutex);
    first = true;
    mutex.Await(absl::Condition(&over));
  });
  {
    const absl::MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&first));
    mutex.AwaitWithTimeout(absl::Condition(&over), absl::Microseconds(1));
    over = true;
  }
  waiter.join();
}

}  // namespace

absl::Status CheckHostPort(absl::string_view field, absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon != absl::string_view::npos && colon > 0) {
    const absl::string_view host = text.substr(0, colon);
    const bool bracketed = host.front() == '[' && host.back() == ']';
    int port = 0;
    const absl::string_view digits = text.substr(colon + 1);
    if (std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) &&
        std::all_of(host.begin(), host.end(), absl::ascii_isgraph) &&
        absl::SimpleAtoi(digits, &port) && port <= 65535 &&
        (bracketed || host.find_first_of(":,/") == absl::string_view::npos)) {
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": \"", absl::CHexEscape(text.substr(0, 300)),
                   "\"; expected HOST:PORT with a port from 0 to 65535"));
}

void HoldGrpc() {
  static const bool held = [] {
    LetTwoWait();
    grpc_init();
    grpc_process = getpid();
    return true;
  }();
  (void)held;
}

absl::Status CheckNotForked() {
  const pid_t process = grpc_process;
  if (process == 0 || process == getpid()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "endpoint: this process was forked from one that had connected, whose threads it lacks; "
      "expected a process that was not (in Python: multiprocessing's spawn)");
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint,
                                           std::shared_ptr<grpc::ChannelCredentials> credentials) {
  HoldGrpc();
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kReplyBytesMax);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Channels of one process would otherwise share one connection and its back-off.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A coordinator that was started elsewhere has its name and another address.
  args.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
  // A server that vanished without closing is noticed while a call waits for it.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(endpoint, credentials, args);
}

void SetUpCall(absl::Time deadline, grpc::ClientContext* context, TokenFile* token, bool first) {
  if (first || absl::string_view(kProtocolVersion) != kProtocolUnnamed) {
    context->AddMetadata(kProtocolKey, kProtocolVersion);
  }
  // gRPC's own way of bringing a token refuses connections without TLS.
  if (token != nullptr) context->AddMetadata(kAuthorizationKey, token->Authorization());
  if (deadline == absl::InfiniteFuture()) return;
  context->set_deadline(absl::ToChronoTime(deadline));
}

void SetUpTrace(const std::string& traceparent, grpc::ClientContext* context) {
  if (!traceparent.empty()) context->AddMetadata(kTraceparentKey, traceparent);
}

void SilenceLibraries() {
  gpr_set_log_function(&Ignore);
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace annulus
