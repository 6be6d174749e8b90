#include "runtime/http/http_door.h"

#include <microhttpd.h>
#include <sys/socket.h>

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/listener.h"
#include "base/peer_address.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {
namespace {

constexpr int kConnectionsMax = 256;
constexpr int kConnectionsOfPeerMax = 64;
constexpr unsigned kIdleMaxS = 5;
constexpr size_t kConnectionBytes = 16 << 10;  // for a request's head

}  // namespace

HttpAnswer ProbeAnswer(const absl::Status& status) {
  if (status.ok()) return {.body = "ok\n"};
  return {.code = 503, .body = absl::StrCat(status.message(), "\n")};
}

// What the library calls.
struct HttpDoor::Handler {
  static MHD_Result Send(MHD_Connection* connection, const HttpAnswer& answer) {
    MHD_Response* const response = MHD_create_response_from_buffer(
        answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
    if (response == nullptr) return MHD_NO;
    MHD_add_response_header(response, "Content-Type", answer.type.c_str());
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'");
    if (answer.code == 405) MHD_add_response_header(response, "Allow", "GET, HEAD");
    const MHD_Result queued =
        MHD_queue_response(connection, static_cast<unsigned>(answer.code), response);
    MHD_destroy_response(response);
    return queued;
  }

  HttpAnswer AnswerTo(const char* path, std::string_view method) const {
    if (method != "GET" && method != "HEAD") {
      return {.code = 405, .body = "method: another; expected GET or HEAD\n"};
    }
    const auto page = pages.find(path);
    if (page != pages.end()) return page->second();
    return {.code = 404,
            .body = absl::StrCat("path: unknown; expected one of ",
                                 absl::StrJoin(pages, " ",
                                               [](std::string* out, const auto& entry) {
                                                 absl::StrAppend(out, entry.first);
                                               }),
                                 "\n")};
  }

  // Whether a body follows the head.
  static bool HasBody(MHD_Connection* connection) {
    const char* const length =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return (length != nullptr && std::string_view(length) != "0") ||
           MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                       MHD_HTTP_HEADER_TRANSFER_ENCODING) != nullptr;
  }

  // Called first when a request's head is there, then again where that was well. A body is not
  // read: the connection ends with the answer.
  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* path,
                              const char* method, const char*, const char*, size_t* body_size,
                              void** state) {
    static int seen = 0;
    const auto* const door = static_cast<const HttpDoor*>(self);
    if (*state == nullptr) {
      *state = &seen;
      if (!HasBody(connection)) return MHD_YES;
      const HttpAnswer answer = Handler{door->pages_}.AnswerTo(path, method);
      if (answer.code == 405) return Send(connection, answer);
      return Send(connection,
                  {.code = 400, .body = "body: given; expected a request without one\n"});
    }
    if (*body_size != 0) return MHD_NO;
    return Send(connection, Handler{door->pages_}.AnswerTo(path, method));
  }

  static MHD_Result OnAccept(void* self, const sockaddr* address, socklen_t) {
    auto* const door = static_cast<HttpDoor*>(self);
    if (door->HasRoom(*address)) return MHD_YES;
    ++door->counts_.refused;
    return MHD_NO;
  }

  static void OnConnection(void* self, MHD_Connection* connection, void**,
                           MHD_ConnectionNotificationCode what) {
    const MHD_ConnectionInfo* const info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    static_cast<HttpDoor*>(self)->Count(*info->client_addr,
                                        what == MHD_CONNECTION_NOTIFY_STARTED ? 1 : -1);
  }

  const std::map<std::string, HttpPage>& pages;
};

bool HttpDoor::HasRoom(const sockaddr& address) const {
  const auto peer = open_.find(PeerOf(address));
  return counts_.open < kConnectionsMax &&
         (peer == open_.end() || peer->second < kConnectionsOfPeerMax);
}

void HttpDoor::Count(const sockaddr& address, int change) {
  counts_.open += change;
  const auto peer = open_.try_emplace(PeerOf(address), 0).first;
  peer->second += change;
  if (peer->second == 0) open_.erase(peer);
}

absl::StatusOr<std::unique_ptr<HttpDoor>> HttpDoor::Start(const std::string& listen,
                                                          std::map<std::string, HttpPage> pages,
                                                          HttpCounts* counts) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("http address", listen));
  const auto failed = [&](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("cannot serve HTTP on \"", listen, "\": ", why,
                                               "; expected an address of this machine and a free "
                                               "port"));
  };
  absl::StatusOr<std::vector<UniqueFd>> listeners = ListenAt(listen, SOMAXCONN);
  if (!listeners.ok()) return failed(listeners.status().message());
  UniqueFd listener = std::move(listeners->front());  // the library takes one
  auto door = std::unique_ptr<HttpDoor>(new HttpDoor(std::move(pages), counts));
  door->port_ = PortOf(listener.get());
  // The library's own bound is beyond ours: it refuses without a word.
  door->daemon_ =
      MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, &Handler::OnAccept, door.get(),
                       &Handler::OnRequest, door.get(), MHD_OPTION_LISTEN_SOCKET,
                       static_cast<MHD_socket>(listener.get()), MHD_OPTION_CONNECTION_LIMIT,
                       static_cast<unsigned>(kConnectionsMax + 1), MHD_OPTION_NOTIFY_CONNECTION,
                       &Handler::OnConnection, door.get(), MHD_OPTION_CONNECTION_TIMEOUT, kIdleMaxS,
                       MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes, MHD_OPTION_END);
  if (door->daemon_ == nullptr) return failed("the HTTP library starts no server");
  listener.Release();  // the library closes it
  return door;
}

HttpDoor::~HttpDoor() {
  if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
}

}  // namespace annulus
