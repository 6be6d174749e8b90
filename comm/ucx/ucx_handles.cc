#include "comm/ucx/ucx_handles.h"

#include <openssl/sha.h>
#include <ucs/config/global_opts.h>
#include <ucs/vfs/base/vfs_obj.h>

#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr absl::string_view kPrefix = "ucx:";
constexpr size_t kIdentityBytes = 16;  // fabric, checksum

uint64_t Fnv1a(absl::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

struct ConfigDeleter {
  void operator()(ucp_config_t* config) const { ucp_config_release(config); }
};

}  // namespace

absl::Status UcxError(absl::string_view what, ucs_status_t status) {
  return absl::UnavailableError(absl::StrCat("UCX: ", what, ": ", ucs_status_string(status)));
}

void SilenceUcx() {
  ucs_global_opts_set_value("LOG_LEVEL", "fatal");
}

absl::StatusOr<UcxContext> MakeUcxContext(const UcxOptions& options) {
  SilenceUcx();
  ucp_config_t* raw = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &raw);
  if (status != UCS_OK) return UcxError("reading its configuration", status);
  const std::unique_ptr<ucp_config_t, ConfigDeleter> config(raw);

  // Options of a transport have no prefix here, other than in UCX's environment.
  std::vector<std::pair<const char*, std::string>> settings = {
      // Everything is eager: no peer ever reads or writes our memory by itself, so that an aborted
      // operation's memory is free the moment its sends are done. The exchange has its own
      // rendezvous (a receive announces itself), and sends large payloads in chunks.
      {"RNDV_THRESH", "inf"},
      // Else UCX 1.13 completes a request whose memory it has given to another one, where a peer is
      // killed while tcp sends from that memory, and ends this process. A copied piece fits one
      // segment.
      {"ZCOPY_THRESH", "inf"},
      {"TX_SEG_SIZE", "64k"},
      {"KEEPALIVE_INTERVAL", absl::StrCat(absl::ToInt64Milliseconds(options.keepalive), "ms")},
      // Else shared memory is passed over without a word, since we ask for news of dead peers.
      {"MM_ERROR_HANDLING", "y"},
      // Else a connection to a host that is gone stops whoever makes it, and with it everything
      // that wants the messenger, for as long as TCP tries: two minutes.
      {"CONN_NB", "y"},
  };
  if (!options.transports.empty()) settings.emplace_back("TLS", options.transports);
  if (!options.net_devices.empty()) settings.emplace_back("NET_DEVICES", options.net_devices);
  if (!options.tcp_port_range.empty()) {
    settings.emplace_back("PORT_RANGE", options.tcp_port_range);
  }
  for (const auto& [name, value] : settings) {
    status = ucp_config_modify(config.get(), name, value.c_str());
    if (status != UCS_OK) {
      return absl::InvalidArgumentError(
          absl::StrCat("UCX option ", name, ": ", value,
                       "; expected a value that UCX knows: ", ucs_status_string(status)));
    }
  }

  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  // UCX says what it has of a context by the context's name.
  static std::atomic<int> contexts = 0;
  const std::string name = absl::StrCat("annulus-", ++contexts);
  params.name = name.c_str();
  ucp_context_h context = nullptr;
  status = ucp_init(&params, config.get(), &context);
  if (status != UCS_OK) {
    const absl::Status failed =
        UcxError(absl::StrCat("no transport (transports ", Quoted(options.transports),
                              ", net_devices ", Quoted(options.net_devices), ")"),
                 status);
    // Names that it does not know here, as opposed to what the machine lacks.
    if (status != UCS_ERR_NO_DEVICE) return failed;
    return absl::InvalidArgumentError(
        absl::StrCat(failed.message(), "; expected names that UCX knows on this machine"));
  }
  return UcxContext(context);
}

absl::StatusOr<UcxWorker> MakeUcxWorker(ucp_context_h context, const UcxOptions& options) {
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_TX | UCP_WAKEUP_RX;
  ucp_worker_h worker = nullptr;
  const ucs_status_t status = ucp_worker_create(context, &params, &worker);
  if (status == UCS_ERR_BUSY && !options.tcp_port_range.empty()) {
    return absl::UnavailableError(absl::StrCat("tcp_port_range: ", options.tcp_port_range,
                                               "; expected a port among them that is free"));
  }
  if (status != UCS_OK) return UcxError("creating a worker", status);
  return UcxWorker(worker);
}

absl::StatusOr<std::string> UcxWorkerAddress(ucp_worker_h worker) {
  ucp_address_t* address = nullptr;
  size_t size_bytes = 0;
  const ucs_status_t status = ucp_worker_get_address(worker, &address, &size_bytes);
  if (status != UCS_OK) return UcxError("reading the worker's address", status);
  std::string bytes(reinterpret_cast<const char*>(address), size_bytes);
  ucp_worker_release_address(worker, address);
  return bytes;
}

int UcxEndpoints(ucp_context_h context, ucp_worker_h worker) {
  ucp_context_attr_t of_context = {};
  of_context.field_mask = UCP_ATTR_FIELD_NAME;
  ucp_worker_attr_t of_worker = {};
  of_worker.field_mask = UCP_WORKER_ATTR_FIELD_NAME;
  if (ucp_context_query(context, &of_context) != UCS_OK ||
      ucp_worker_query(worker, &of_worker) != UCS_OK) {
    return -1;
  }
  const std::string path =
      absl::StrCat("/ucp/context/", of_context.name, "/worker/", of_worker.name, "/num_all_eps");
  ucs_string_buffer_t text;
  ucs_string_buffer_init(&text);
  int count = -1;
  if (ucs_vfs_path_read_file(path.c_str(), &text) != UCS_OK ||
      !absl::SimpleAtoi(ucs_string_buffer_cstr(&text), &count)) {
    count = -1;
  }
  ucs_string_buffer_cleanup(&text);
  return count;
}

uint64_t UcxIdentityOf(const LinkKey& farewell) {
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(farewell.bytes.data()), LinkKey::kBytes, hash);
  uint64_t identity = 0;
  std::memcpy(&identity, hash, sizeof identity);
  return identity;
}

std::string UcxAddress::ToString() const {
  const uint64_t checksum = Fnv1a(worker) ^ fabric;
  std::string bytes(kIdentityBytes, '\0');
  std::memcpy(bytes.data(), &fabric, sizeof fabric);
  std::memcpy(bytes.data() + sizeof fabric, &checksum, sizeof checksum);
  return absl::StrCat(kPrefix, absl::WebSafeBase64Escape(bytes + worker));
}

absl::StatusOr<UcxAddress> UcxAddress::Parse(absl::string_view text) {
  std::string bytes;
  UcxAddress address;
  uint64_t checksum = 0;
  bool ok = absl::StartsWith(text, kPrefix) &&
            absl::WebSafeBase64Unescape(text.substr(kPrefix.size()), &bytes) &&
            bytes.size() > kIdentityBytes;
  if (ok) {
    std::memcpy(&address.fabric, bytes.data(), sizeof address.fabric);
    std::memcpy(&checksum, bytes.data() + sizeof address.fabric, sizeof checksum);
    address.worker = bytes.substr(kIdentityBytes);
    ok = checksum == (Fnv1a(address.worker) ^ address.fabric);
  }
  if (!ok) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address: ", absl::CHexEscape(text.substr(0, 80)), "; expected what a UCX messenger gave"));
  }
  return address;
}

}  // namespace annulus
