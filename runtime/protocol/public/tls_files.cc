#include "runtime/protocol/public/tls_files.h"

#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr unsigned kCopyPeriodS = 1;  // how often gRPC looks whether a copy was replaced

absl::Status Failed(absl::string_view what) {
  return absl::InternalError(absl::StrCat("TLS: ", what, ": ", std::strerror(errno)));
}

// What tells one state of the files from the next.
std::string TextOf(const absl::StatusOr<ServerPem>& pem) {
  if (!pem.ok()) return std::string(pem.status().message());
  return absl::StrCat(pem->cert, "\n", pem->key, "\n", pem->client_ca);
}

}  // namespace

absl::Status TlsFiles::Copy::Set(absl::string_view text) {
  UniqueFd next(memfd_create("annulus-tls", MFD_CLOEXEC));
  if (!next.is_open()) return Failed("memfd_create");
  while (!text.empty()) {
    const ssize_t written = write(next.get(), text.data(), text.size());
    if (written < 0) return Failed("write");
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (!fd_.is_open()) {
    fd_ = std::move(next);
    return absl::OkStatus();
  }
  // Whoever opens the path finds the one file or the other.
  return dup3(next.get(), fd_.get(), O_CLOEXEC) < 0 ? Failed("dup3") : absl::OkStatus();
}

std::string TlsFiles::Copy::path() const {
  return fd_.is_open() ? absl::StrCat("/proc/self/fd/", fd_.get()) : "";
}

absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::Open(const ServerTls& tls) {
  std::unique_ptr<TlsFiles> files(new TlsFiles(tls));
  if (!tls.on() && tls.key.empty() && tls.client_ca.empty()) {
    files->credentials_ = grpc::InsecureServerCredentials();
    return files;
  }
  const absl::StatusOr<ServerPem> pem = ReadServerTls(tls);
  ANNULUS_RETURN_IF_ERROR(files->Load(pem));
  files->seen_ = TextOf(pem);
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          files->pair_.path(), files->pair_.path(), files->authorities_.path(), kCopyPeriodS));
  options.watch_identity_key_cert_pairs();
  if (!tls.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  files->credentials_ = grpc::experimental::TlsServerCredentials(options);
  files->thread_ = std::thread([self = files.get()] { self->Watch(); });
  return files;
}

TlsFiles::~TlsFiles() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void TlsFiles::Watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_.wait_for(lock, absl::ToChronoNanoseconds(tls_.reload_period),
                         [this] { return stopping_; })) {
    lock.unlock();
    Reload();
    lock.lock();
  }
}

absl::Status TlsFiles::Load(const absl::StatusOr<ServerPem>& pem) {
  ANNULUS_RETURN_IF_ERROR(pem.status());
  const absl::Time now = absl::Now();
  if (pem->expiry <= now && reading_.expiry.has_value() && *reading_.expiry > now) {
    return absl::InvalidArgumentError(
        absl::StrCat("tls_cert: file ", QuotedEnd(tls_.cert), " ended at ",
                     absl::FormatTime(pem->expiry, absl::UTCTimeZone()),
                     "; expected a certificate that is valid"));
  }
  ANNULUS_RETURN_IF_ERROR(pair_.Set(absl::StrCat(pem->cert, "\n", pem->key)));
  if (!tls_.client_ca.empty()) ANNULUS_RETURN_IF_ERROR(authorities_.Set(pem->client_ca));
  reading_.expiry = pem->expiry;
  return absl::OkStatus();
}

TlsFiles::Reading TlsFiles::Reload() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!tls_.on()) return reading_;
  const absl::StatusOr<ServerPem> pem = ReadServerTls(tls_);
  std::string seen = TextOf(pem);
  if (seen == seen_) return reading_;
  seen_ = std::move(seen);
  const absl::Status status = Load(pem);
  if (status.ok()) {
    ++reading_.reloads;
    Log(LogLevel::kInfo, "TLS was read again", {{"file", tls_.cert}});
  } else {
    ++reading_.reloads_failed;
    Log(LogLevel::kError, "TLS is as it was, since a new file is spoilt",
        {{"file", tls_.cert}, {"why", status.message()}});
  }
  return reading_;
}

TlsFiles::Reading TlsFiles::reading() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reading_;
}

}  // namespace annulus
