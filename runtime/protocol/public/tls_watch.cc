#include "runtime/protocol/public/tls_watch.h"

#include "absl/strings/str_cat.h"

namespace annulus {

TlsWatch::TlsWatch(const ServerTls& tls)
    : tls_(tls),
      cert_(tls.cert, kPemBytesMax),
      key_(tls.key, kPemBytesMax),
      client_ca_(tls.client_ca, kPemBytesMax) {}

TlsWatch::Reading TlsWatch::Look() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!tls_.on()) return reading_;
  std::string all;
  for (WatchedFile* file : {&cert_, &key_, &client_ca_}) {
    // What cannot be read is found out below.
    if (!file->path().empty()) absl::StrAppend(&all, file->Read().value_or(""), "\n");
  }
  if (all == seen_) return reading_;
  const bool first = seen_.empty();
  seen_ = std::move(all);
  const absl::StatusOr<absl::Time> expiry = CheckServerTls(tls_);
  if (expiry.ok()) reading_.expiry = *expiry;
  if (!first) ++(expiry.ok() ? reading_.reloads : reading_.reloads_failed);
  return reading_;
}

}  // namespace annulus
