// TlsWatch: how the files of a server's TLS stand, for metrics. The server itself reads them anew
// as they change (tls.h); this looks at them beside it, whenever it is asked. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "base/watched_file.h"
#include "runtime/protocol/public/tls.h"

namespace annulus {

class TlsWatch {
 public:
  struct Reading {
    // Of the chain that was good last: the first end of its certificates. Absent without TLS.
    std::optional<absl::Time> expiry;
    uint64_t reloads = 0;         // changes for the good, since the server began
    uint64_t reloads_failed = 0;  // files that cannot be served, each once
  };

  TlsWatch(const ServerTls& tls);  // implicit: it is a member of plain structs

  Reading Look();

 private:
  const ServerTls tls_;
  std::mutex mutex_;  // of all that follows
  WatchedFile cert_, key_, client_ca_;
  std::string seen_;  // all of them, as they were last looked at
  Reading reading_;
};

}  // namespace annulus
