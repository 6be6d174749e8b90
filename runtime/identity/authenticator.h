// Authenticator: who a caller is, by what it brings. Knows the file of --auth and the keys that it
// names, and reads both again when they change: a file that is spoilt then changes nothing.
// Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/watched_file.h"
#include "runtime/identity/auth_file.h"
#include "runtime/identity/caller.h"

namespace annulus {

class AuditLog;

// The file of --auth, and that of keys.
inline constexpr size_t kAuthFileBytesMax = 4 << 20;
// Signed tokens that are remembered until they expire, so that a signature is checked once.
inline constexpr size_t kVerifiedMax = 4096;

class Authenticator {
 public:
  struct Counts {
    uint64_t reloads = 0;         // that went well, beside the first
    uint64_t reloads_failed = 0;  // files that were spoilt, each once
    bool bad = false;             // the files are spoilt now, and what was read before goes on
  };

  // Whether callers are asked for certificates. Where they are not, a file of certificates alone is
  // spoilt: nobody could be known.
  enum class Certificates { kAsked, kNotAsked };

  // INVALID_ARGUMENT names the file, the field, its value and what was expected. From then on the
  // files are looked at every `reload_period`; zero: only by Reload. `audit`, which outlives this,
  // is told when they were read again.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Open(
      const std::string& path, absl::Duration reload_period, AuditLog* audit = nullptr,
      Certificates certificates = Certificates::kAsked);
  ~Authenticator();

  // Whose bearer token this is. UNAUTHENTICATED says why it is nobody's, for logs: to the caller
  // all reasons must read alike.
  absl::StatusOr<Caller> OfToken(absl::string_view token, absl::Time now);

  // Whose certificate has these names, of which the peer has proved that it has the key.
  absl::StatusOr<Caller> OfCertificate(absl::Span<const std::string> names);
  bool knows_certificates() const;

  Quotas quotas() const;
  Counts counts() const { return {reloads_.load(), reloads_failed_.load(), bad_.load()}; }

  // Reads what may have changed. The error of a spoilt file, which then has changed nothing.
  absl::Status Reload();

 private:
  class Known;

  Authenticator(const std::string& path, AuditLog* audit, Certificates certificates)
      : audit_(audit), certificates_(certificates), auth_(path, kAuthFileBytesMax) {}

  absl::Status Load(bool* changed);  // with reload_mutex_
  void Watch(absl::Duration period);
  std::shared_ptr<Known> known() const;

  AuditLog* const audit_;
  const Certificates certificates_;
  std::mutex reload_mutex_;  // the three that follow
  WatchedFile auth_;
  std::unique_ptr<WatchedFile> jwks_;
  std::string loaded_, failed_;  // what was read last, and failed last
  mutable std::mutex mutex_;
  std::shared_ptr<Known> known_;  // under mutex_; replaced, never changed
  std::atomic<uint64_t> reloads_ = 0;
  std::atomic<uint64_t> reloads_failed_ = 0;
  std::atomic<bool> bad_ = false;
  std::condition_variable stop_;
  bool stopping_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace annulus
