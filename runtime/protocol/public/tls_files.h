// TlsFiles: what a server's TLS is made of, its certificate, its key and the authorities of its
// clients, as the files held it when they were last good. gRPC would take whatever lies there, and
// then refuse every connection without a word. So it is given copies in memory, which this
// replaces once it has looked at new files: what cannot be served is logged, counted and left
// alone, as is a certificate that has expired while the one before has not. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "runtime/protocol/public/tls.h"

namespace grpc {
class ServerCredentials;
}  // namespace grpc

namespace annulus {

class TlsFiles {
 public:
  struct Reading {
    // Of the chain that is served: the first end of its certificates. Absent without TLS.
    std::optional<absl::Time> expiry;
    uint64_t reloads = 0;         // changes for the good, since the server began
    uint64_t reloads_failed = 0;  // files that cannot be served, each once
  };

  // Looks at the files every reload_period. Errors as of ReadServerTls.
  static absl::StatusOr<std::unique_ptr<TlsFiles>> Open(const ServerTls& tls);
  ~TlsFiles();

  // Plain text without TLS. This outlives the server that has them.
  std::shared_ptr<grpc::ServerCredentials> credentials() const { return credentials_; }

  // Looks at the files now.
  Reading Reload();
  Reading reading() const;

 private:
  // A file in memory, which is replaced as a whole.
  class Copy {
   public:
    absl::Status Set(absl::string_view text);
    std::string path() const;

   private:
    UniqueFd fd_;
  };

  explicit TlsFiles(const ServerTls& tls) : tls_(tls) {}
  absl::Status Load(const absl::StatusOr<ServerPem>& pem);
  void Watch();

  const ServerTls tls_;
  mutable std::mutex mutex_;  // of all that follows
  std::string seen_;          // what the files held, or why they could not be served, last
  Copy pair_, authorities_;
  Reading reading_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread thread_;
};

}  // namespace annulus
