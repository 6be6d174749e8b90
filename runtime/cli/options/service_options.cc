#include "runtime/cli/options/service_options.h"

#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/quoted.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/shared_options.h"

namespace annulus {
namespace {

constexpr int kMillisecondsMax = 3'600'000;

// UCX itself takes what it does not understand for any port.
absl::StatusOr<std::string> ParsePortRange(absl::string_view text) {
  int first = 0, last = 0;
  const std::vector<absl::string_view> ends = absl::StrSplit(text, '-');
  if (ends.size() == 2 && absl::SimpleAtoi(ends[0], &first) && absl::SimpleAtoi(ends[1], &last) &&
      first >= 1 && first <= last && last <= 65535) {
    return std::string(text);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(text), "; expected A-B with 1 <= A <= B <= 65535"));
}

}  // namespace

void AddServiceOptions(Options* options, ServiceFlags* flags) {
  options->Add("transports", "LIST", "UCX transports among processes, as UCX_TLS (tcp)",
               SetText(&flags->transports));
  options->Add(
      "net-devices", "LIST",
      "network devices for them, as UCX_NET_DEVICES (all; where the coordinator's endpoint is "
      "loopback: lo)",
      SetText(&flags->net_devices));
  options->Add("tcp-port-range", "A-B", "TCP ports for them, as UCX_TCP_PORT_RANGE (any)",
               SetParsed(&flags->tcp_port_range, ParsePortRange));
  options->Add("heartbeat-ms", "N", "a sign of life every N ms (100)",
               SetCount(&flags->heartbeat_ms, 1, kMillisecondsMax));
  options->Add("heartbeat-timeout-ms", "N", "who is silent for N ms is lost (1000)",
               SetCount(&flags->heartbeat_timeout_ms, 1, kMillisecondsMax));
  options->Add("client-stall-max", "S",
               "a client that neither sends what it owes nor reads for S s is cut (10)",
               SetCount(&flags->client_stall_max_s, 1, 3600));
  options->Add("client-rate-min", "N",
               "bytes a second that a client must move of what it owes (64K)",
               SetCount(&flags->client_rate_min, 1, int64_t{1} << 40));
  options->Add(
      "connections-max", "N",
      "connections at once, half of them from one address; fewer where descriptors are (4K)",
      SetCount(&flags->connections_max, 1, 1 << 20));
  options->Add("http-listen", "HOST:PORT",
               "pages for probes, scrapers and people: /livez /readyz /startupz /metrics /status "
               "/status.json (none)",
               SetParsed(&flags->http_listen, ParseEndpoint));
  options->Add(
      "trace-out", "F",
      "add spans of calls to this file, a line of OTLP in JSON each: below the traceparent "
      "that a call brings and records, or in a trace of its own (none)",
      SetText(&flags->trace_out));
  options->Add("log-level", "debug|info|warning|error|off", "what is logged on stderr (info)",
               [flags](absl::string_view text) {
                 flags->log_level_text = std::string(text);
                 return SetParsed(&flags->log_level, ParseLogLevel)(text);
               });
}

void AddLimits(Options* options, LimitFlags* flags) {
  CoordinatorLimits* const limits = &flags->coordinator;
  constexpr int64_t kBytesMax = int64_t{1} << 50;
  options->Add("contexts-max", "N", "contexts at once, half of them one tenant's (4096)",
               SetCount(&limits->contexts_max, 1, int64_t{1} << 24));
  options->Add("layers-max", "N", "layers of all contexts together, half of them one tenant's (1M)",
               SetCount(&limits->layers_max, 1, int64_t{1} << 32));
  options->Add("in-flight-max", "N", "calls at once, half of them one client's (256)",
               SetCount(&limits->in_flight_max, 1, kCallsMax));
  options->Add("in-flight-bytes-max", "N",
               "bytes of all calls' tensors, candidates and lists at once, half of them one "
               "client's (4G)",
               SetCount(&limits->in_flight_bytes_max, 1, kBytesMax));
  options->Add("request-bytes-max", "N",
               "bytes of one call's tensors with its answer, half of buffer-bytes-max and of "
               "in-flight-bytes-max at most (1G)",
               SetCount(&limits->request_bytes_max, 1, kBytesMax));
  options->Add("buffer-bytes-max", "N",
               "bytes of all calls' tensors that come from clients or go to them, half of them one "
               "client's (2G)",
               SetCount(&flags->buffer_bytes_max, 1, kBytesMax));
  options->Add("list-cache-bytes", "N",
               "lists that calls name by handles, here and at each worker (256M)",
               SetCount(&limits->list_cache_bytes, 0, kBytesMax));
  options->AddFlag("evict", "when KV is full, unused contexts that are marked evictable go",
                   &limits->evict);
}

Arguments LimitArguments(const LimitFlags& flags) {
  const CoordinatorLimits& limits = flags.coordinator;
  Arguments args = {"--contexts-max",        absl::StrCat(limits.contexts_max),
                    "--layers-max",          absl::StrCat(limits.layers_max),
                    "--in-flight-max",       absl::StrCat(limits.in_flight_max),
                    "--in-flight-bytes-max", absl::StrCat(limits.in_flight_bytes_max),
                    "--request-bytes-max",   absl::StrCat(limits.request_bytes_max),
                    "--buffer-bytes-max",    absl::StrCat(flags.buffer_bytes_max),
                    "--list-cache-bytes",    absl::StrCat(limits.list_cache_bytes)};
  if (limits.evict) args.push_back("--evict");
  return args;
}

RpcLimits RpcLimitsOf(const LimitFlags& limits, const ServiceFlags& service) {
  RpcLimits rpc;
  rpc.stream.request_bytes_max = limits.coordinator.request_bytes_max;
  rpc.buffer_bytes_max = limits.buffer_bytes_max;
  // As many as may work at once can be there, too.
  rpc.in_flight_max = static_cast<int>(limits.coordinator.in_flight_max);
  rpc.transfers_max = std::max(rpc.transfers_max, rpc.in_flight_max);
  rpc.step_streams_max = std::max(rpc.step_streams_max, rpc.in_flight_max);
  rpc.client = ClientLimitsOf(service);
  rpc.connections = ConnectionLimitsOf(service);
  return rpc;
}

Metric TransportBytes(const char* transport, const char* direction, uint64_t bytes) {
  return {"annulus_transport_bytes_total",
          "Payload bytes that went over a transport.",
          Metric::Kind::kCounter,
          static_cast<double>(bytes),
          {{"transport", transport}, {"direction", direction}}};
}

Metric CallsRefused(absl::string_view reason, uint64_t count) {
  return {"annulus_calls_refused_total",
          "Calls that were refused: for want of room by the bound that they met, or of a right.",
          Metric::Kind::kCounter,
          static_cast<double>(count),
          {{"reason", std::string(reason)}}};
}

Metric QueueWait(const char* queue, Histogram::Reading waits) {
  return {"annulus_queue_wait_seconds", "Time until calls had their turn, or tasks began.",
          Metric::Kind::kHistogram,     0,
          {{"queue", queue}},           std::move(waits)};
}

std::vector<Metric> MetricsOf(const ConnectionCounts& counts) {
  const auto count = [](const char* why, uint64_t value) {
    return Metric{"annulus_connections_refused_total",
                  "Connections that were closed at once.",
                  Metric::Kind::kCounter,
                  static_cast<double>(value),
                  {{"why", why}}};
  };
  return {{"annulus_connections",
           "Connections of clients that are open.",
           Metric::Kind::kGauge,
           static_cast<double>(counts.open.load()),
           {}},
          count("bound", counts.refused.load()),
          count("descriptors", counts.failed.load()),
          {"annulus_tls_handshakes_failed_total",
           "Connections that ended before their handshake of TLS was done.",
           Metric::Kind::kCounter,
           static_cast<double>(counts.handshakes_failed.load()),
           {}}};
}

absl::Status CheckServiceOptions(const ServiceFlags& flags) {
  if (flags.heartbeat_timeout_ms >= 2 * flags.heartbeat_ms) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--heartbeat-timeout-ms: ", flags.heartbeat_timeout_ms,
                   "; expected at least twice --heartbeat-ms, ", flags.heartbeat_ms));
}

Arguments ServiceArguments(const ServiceFlags& flags) {
  Arguments args = {"--transports",
                    flags.transports,
                    "--heartbeat-ms",
                    absl::StrCat(flags.heartbeat_ms),
                    "--heartbeat-timeout-ms",
                    absl::StrCat(flags.heartbeat_timeout_ms),
                    "--client-stall-max",
                    absl::StrCat(flags.client_stall_max_s),
                    "--client-rate-min",
                    absl::StrCat(flags.client_rate_min),
                    "--connections-max",
                    absl::StrCat(flags.connections_max),
                    "--log-level",
                    flags.log_level_text};
  if (!flags.trace_out.empty()) args.insert(args.end(), {"--trace-out", flags.trace_out});
  if (!flags.net_devices.empty()) args.insert(args.end(), {"--net-devices", flags.net_devices});
  if (!flags.tcp_port_range.empty()) {
    args.insert(args.end(), {"--tcp-port-range", flags.tcp_port_range});
  }
  return args;
}

ClientLimits ClientLimitsOf(const ServiceFlags& flags) {
  return {absl::Seconds(flags.client_stall_max_s), flags.client_rate_min};
}

ConnectionLimits ConnectionLimitsOf(const ServiceFlags& flags) {
  return {.connections_max = flags.connections_max};
}

void KeepToLoopback(const std::string& endpoint, ServiceFlags* flags) {
  if (flags->net_devices.empty() && IsLoopback(endpoint)) flags->net_devices = "lo";
}

UcxOptions UcxOptionsOf(const ServiceFlags& flags) {
  UcxOptions options;
  options.transports = flags.transports;
  options.net_devices = flags.net_devices;
  options.tcp_port_range = flags.tcp_port_range;
  return options;
}

absl::StatusOr<std::string> LocalHostTowards(const std::string& endpoint) {
  const size_t colon = endpoint.rfind(':');
  std::string host = endpoint.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  const auto failed = [&](const char* why) {
    return absl::UnavailableError(absl::StrCat("no way from here to ", endpoint, ": ", why));
  };
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), endpoint.c_str() + colon + 1, &hints, &found)) {
    return failed(gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, &freeaddrinfo);
  const int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed(strerror(errno));
  // Connecting a datagram socket sends nothing and chooses the source address.
  sockaddr_storage local = {};
  socklen_t size = sizeof local;
  auto* address = reinterpret_cast<sockaddr*>(&local);
  const bool chosen =
      connect(fd, found->ai_addr, found->ai_addrlen) == 0 && getsockname(fd, address, &size) == 0;
  const int error = errno;
  close(fd);
  if (!chosen) return failed(strerror(error));
  char text[NI_MAXHOST];
  if (const int unknown =
          getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST)) {
    return failed(gai_strerror(unknown));
  }
  return local.ss_family == AF_INET6 ? absl::StrCat("[", text, "]") : std::string(text);
}

int64_t MemoryBytes() {
  int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  // "max" where there is no limit: then nothing is read.
  int64_t limit_bytes = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit_bytes && limit_bytes > 0) {
    bytes = std::min(bytes, limit_bytes);
  }
  return bytes;
}

}  // namespace annulus
