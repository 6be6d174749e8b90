#include "runtime/http/http_door.h"

#include <microhttpd.h>
#include <sys/socket.h>

#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/listener.h"
#include "base/peer_address.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {
namespace {

constexpr int kConnectionsMax = 256;
constexpr int kConnectionsOfPeerMax = 64;
constexpr unsigned kIdleMaxS = 5;
constexpr absl::Duration kLookPeriod = absl::Seconds(1);
constexpr size_t kConnectionBytes = 16 << 10;  // for a request's head

}  // namespace

HttpAnswer ProbeAnswer(const absl::Status& status) {
  if (status.ok()) return {.body = "ok\n"};
  return {.code = 503, .body = absl::StrCat(status.message(), "\n")};
}

// What the library calls.
struct HttpDoor::Handler {
  // `last`: whatever follows on the connection is no request.
  static MHD_Result Send(MHD_Connection* connection, const HttpAnswer& answer, bool last = false) {
    MHD_Response* const response = MHD_create_response_from_buffer(
        answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
    if (response == nullptr) return MHD_NO;
    MHD_add_response_header(response, "Content-Type", answer.type.c_str());
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'");
    if (last) MHD_add_response_header(response, "Connection", "close");
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

  // Whether a body follows the head, or somebody between may think so: a length that is told twice,
  // or a name that readers may read differently.
  static bool MayHaveBody(MHD_Connection* connection) {
    bool may_have = false;
    bool told = false;  // a length
    const auto look = [&](absl::string_view name, absl::string_view value) {
      if (name.find_first_of(" \t\r\n\v\f") != absl::string_view::npos || name.empty()) {
        may_have = true;
      } else if (absl::EqualsIgnoreCase(name, MHD_HTTP_HEADER_TRANSFER_ENCODING)) {
        may_have = true;
      } else if (absl::EqualsIgnoreCase(name, MHD_HTTP_HEADER_CONTENT_LENGTH)) {
        may_have = may_have || told || value != "0";
        told = true;
      }
    };
    using Look = decltype(look);
    MHD_get_connection_values_n(
        connection, MHD_HEADER_KIND,
        [](void* self, MHD_ValueKind, const char* name, size_t name_size, const char* value,
           size_t value_size) {
          (*static_cast<Look*>(self))({name, name_size}, {value, value_size});
          return MHD_YES;
        },
        const_cast<std::remove_const_t<Look>*>(&look));
    return may_have;
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
      if (!MayHaveBody(connection)) return MHD_YES;
      const HttpAnswer answer = Handler{door->pages_}.AnswerTo(path, method);
      if (answer.code == 405) return Send(connection, answer, /*last=*/true);
      return Send(connection,
                  {.code = 400, .body = "body: given; expected a request without one\n"},
                  /*last=*/true);
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

  static int SocketOf(MHD_Connection* connection) {
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
  }

  static void OnConnection(void* self, MHD_Connection* connection, void**,
                           MHD_ConnectionNotificationCode what) {
    auto* const door = static_cast<HttpDoor*>(self);
    const MHD_ConnectionInfo* const info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const bool started = what == MHD_CONNECTION_NOTIFY_STARTED;
    door->Count(*info->client_addr, started ? 1 : -1);
    started ? door->Begin(SocketOf(connection)) : door->Forget(SocketOf(connection));
  }

  static void OnAnswered(void* self, MHD_Connection* connection, void**,
                         MHD_RequestTerminationCode) {
    static_cast<HttpDoor*>(self)->Begin(SocketOf(connection));
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

void HttpDoor::Begin(int fd) {
  const std::lock_guard<std::mutex> lock(mutex_);
  began_[fd] = absl::Now();
}

void HttpDoor::Forget(int fd) {
  const std::lock_guard<std::mutex> lock(mutex_);
  began_.erase(fd);
}

void HttpDoor::Watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_.wait_for(lock, absl::ToChronoNanoseconds(kLookPeriod), [&] { return stopping_; })) {
    for (const auto& [fd, began] : began_) {
      // The library sees the end of the connection, and closes it.
      if (absl::Now() - began > kRequestMax) shutdown(fd, SHUT_RDWR);
    }
  }
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
  door->daemon_ = MHD_start_daemon(
      MHD_USE_EPOLL_INTERNAL_THREAD, 0, &Handler::OnAccept, door.get(), &Handler::OnRequest,
      door.get(), MHD_OPTION_LISTEN_SOCKET, static_cast<MHD_socket>(listener.get()),
      MHD_OPTION_CONNECTION_LIMIT, static_cast<unsigned>(kConnectionsMax + 1),
      MHD_OPTION_NOTIFY_CONNECTION, &Handler::OnConnection, door.get(), MHD_OPTION_NOTIFY_COMPLETED,
      &Handler::OnAnswered, door.get(), MHD_OPTION_CONNECTION_TIMEOUT, kIdleMaxS,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes, MHD_OPTION_END);
  if (door->daemon_ == nullptr) return failed("the HTTP library starts no server");
  listener.Release();  // the library closes it
  door->watch_ = std::thread([self = door.get()] { self->Watch(); });
  return door;
}

HttpDoor::~HttpDoor() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  if (watch_.joinable()) watch_.join();
  if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
}

}  // namespace annulus
