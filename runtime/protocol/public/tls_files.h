// TlsFiles: what a server or a client speaks TLS by, its certificate, its key and the authorities
// of its peers, as the files held it when they were last good. gRPC would take whatever lies there,
// and then fail every connection without a word. So it is given copies in memory, which this
// replaces once it has looked at new files: what cannot be used is logged, counted and left alone,
// as is a certificate that has expired while the one before has not. Thread-safe. Has one thread,
// where there is TLS.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "runtime/protocol/public/tls.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace annulus {

class TlsFiles {
 public:
  struct Reading {
    // Of the chain that is shown: the first end of its certificates. Absent where none is.
    std::optional<absl::Time> expiry;
    uint64_t reloads = 0;         // changes for the good, since Open
    uint64_t reloads_failed = 0;  // files that cannot be used, each once
    bool bad = false;             // the files cannot be used now, and those before go on
  };

  // Looks at the files every reload_period. Errors as of ReadTls. No files: plain text.
  static absl::StatusOr<std::unique_ptr<TlsFiles>> Open(const ServerTls& tls);
  static absl::StatusOr<std::unique_ptr<TlsFiles>> Open(const ClientTls& tls);
  ~TlsFiles();

  // This outlives the servers or channels that have them. A server's are made of files that were
  // opened as a server's, a client's of a client's.
  std::shared_ptr<grpc::ServerCredentials> ServerCredentials() const;
  // Handshakes that servers with these credentials have done; null: plain text.
  std::shared_ptr<const std::atomic<uint64_t>> handshakes() const { return handshakes_; }
  std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials() const;

  // Looks at the files now.
  Reading Reload();
  Reading reading() const;

 private:
  using Read = std::function<absl::StatusOr<TlsPem>()>;

  // A file in memory, which is replaced as a whole.
  class Copy {
   public:
    ~Copy();
    absl::Status Set(absl::string_view text);
    std::string path() const;  // empty before the first Set

   private:
    UniqueFd fd_;
  };

  TlsFiles(Read read, std::string name, absl::Duration reload_period)
      : read_(std::move(read)), name_(std::move(name)), reload_period_(reload_period) {}
  template <typename Tls>
  static absl::StatusOr<std::unique_ptr<TlsFiles>> OpenAs(const Tls& tls, const std::string& ca);
  absl::Status Load(const absl::StatusOr<TlsPem>& pem);
  // Says once of each certificate that it has ended: peers refuse it, and do not say why.
  void WarnIfEnded();
  void Watch();

  const Read read_;         // null: plain text
  const std::string name_;  // of the file that logs name
  const absl::Duration reload_period_;
  mutable std::mutex mutex_;  // of all that follows
  std::string seen_;          // what the files held, or why they could not be used, last
  Copy pair_, authorities_;
  std::shared_ptr<std::atomic<uint64_t>> handshakes_;
  Reading reading_;
  std::optional<absl::Time> told_end_;  // of the certificate that was told of
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread thread_;
};

}  // namespace annulus
