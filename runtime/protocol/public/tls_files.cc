#include "runtime/protocol/public/tls_files.h"

#include <fcntl.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

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
std::string TextOf(const absl::StatusOr<TlsPem>& pem) {
  if (!pem.ok()) return std::string(pem.status().message());
  return absl::StrCat(pem->cert, "\n", pem->key, "\n", pem->authorities);
}

// Descriptors of copies that have ended, for copies to come. gRPC knows a copy by its descriptor's
// number and looks on for a while after the last channel has gone: it must find no other file of
// the process there, so the numbers are never closed.
class EndedCopies {
 public:
  void Keep(UniqueFd fd) {
    // The process may have been forked: what the file itself holds is its parent's too. What takes
    // its place cannot be opened: an empty key would end the process.
    const UniqueFd nothing(eventfd(0, EFD_CLOEXEC));
    if (nothing.is_open()) dup3(nothing.get(), fd.get(), O_CLOEXEC);
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(std::move(fd));
  }
  // None if there is none.
  UniqueFd Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kept_.empty()) return UniqueFd();
    UniqueFd fd = std::move(kept_.back());
    kept_.pop_back();
    return fd;
  }

 private:
  std::mutex mutex_;
  std::vector<UniqueFd> kept_;  // under mutex_
};

// Never destroyed: gRPC's threads run while the process exits.
EndedCopies& Ended() {
  static auto* const ended = new EndedCopies;
  return *ended;
}

// Refuses nobody: gRPC asks it once a handshake is done.
class HandshakeCounter final : public grpc::experimental::ExternalCertificateVerifier {
 public:
  explicit HandshakeCounter(std::shared_ptr<std::atomic<uint64_t>> count)
      : count_(std::move(count)) {}

  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest*,
              std::function<void(grpc::Status)>, grpc::Status* status) override {
    ++*count_;
    *status = grpc::Status::OK;
    return true;  // at once
  }
  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest*) override {}

 private:
  const std::shared_ptr<std::atomic<uint64_t>> count_;
};

auto ProviderOf(const std::string& pair, const std::string& authorities) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      pair, pair, authorities, kCopyPeriodS);
}

void WatchCopies(const std::string& pair, const std::string& authorities,
                 grpc::experimental::TlsCredentialsOptions* options) {
  if (!pair.empty()) options->watch_identity_key_cert_pairs();
  if (!authorities.empty()) options->watch_root_certs();
}

}  // namespace

TlsFiles::Copy::~Copy() {
  if (fd_.is_open()) Ended().Keep(std::move(fd_));
}

absl::Status TlsFiles::Copy::Set(absl::string_view text) {
  UniqueFd next(memfd_create("annulus-tls", MFD_CLOEXEC));
  if (!next.is_open()) return Failed("memfd_create");
  while (!text.empty()) {
    const ssize_t written = write(next.get(), text.data(), text.size());
    if (written < 0) return Failed("write");
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (!fd_.is_open()) fd_ = Ended().Take();
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

template <typename Tls>
absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::OpenAs(const Tls& tls, const std::string& ca) {
  const bool plain = tls.cert.empty() && tls.key.empty() && ca.empty();
  Read read;
  if (!plain) read = [tls] { return ReadTls(tls); };
  std::unique_ptr<TlsFiles> files(
      new TlsFiles(std::move(read), tls.cert.empty() ? ca : tls.cert, tls.reload_period));
  if (plain) return files;
  const absl::StatusOr<TlsPem> pem = ReadTls(tls);
  ANNULUS_RETURN_IF_ERROR(files->Load(pem));
  files->WarnIfEnded();
  files->seen_ = TextOf(pem);
  files->handshakes_ = std::make_shared<std::atomic<uint64_t>>(0);
  files->thread_ = std::thread([self = files.get()] { self->Watch(); });
  return files;
}

absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::Open(const ServerTls& tls) {
  return OpenAs(tls, tls.client_ca);
}

absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::Open(const ClientTls& tls) {
  return OpenAs(tls, tls.ca);
}

TlsFiles::~TlsFiles() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<grpc::ServerCredentials> TlsFiles::ServerCredentials() const {
  if (read_ == nullptr) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(
      ProviderOf(pair_.path(), authorities_.path()));
  WatchCopies(pair_.path(), authorities_.path(), &options);
  if (!authorities_.path().empty()) {
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  options.set_certificate_verifier(
      grpc::experimental::ExternalCertificateVerifier::Create<HandshakeCounter>(handshakes_));
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> TlsFiles::ChannelCredentials() const {
  if (read_ == nullptr) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(ProviderOf(pair_.path(), authorities_.path()));
  WatchCopies(pair_.path(), authorities_.path(), &options);
  options.set_verify_server_certs(true);
  return grpc::experimental::TlsCredentials(options);
}

void TlsFiles::Watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_.wait_for(lock, absl::ToChronoNanoseconds(reload_period_),
                         [this] { return stopping_; })) {
    lock.unlock();
    Reload();
    lock.lock();
  }
}

absl::Status TlsFiles::Load(const absl::StatusOr<TlsPem>& pem) {
  ANNULUS_RETURN_IF_ERROR(pem.status());
  const absl::Time now = absl::Now();
  if (reading_.expiry.has_value() && *reading_.expiry > now && pem->expiry <= now) {
    return absl::InvalidArgumentError(
        absl::StrCat("tls_cert: file ", QuotedEnd(name_), " ended at ",
                     absl::FormatTime(pem->expiry, absl::UTCTimeZone()),
                     "; expected a certificate that is valid"));
  }
  if (!pem->cert.empty()) {
    ANNULUS_RETURN_IF_ERROR(pair_.Set(absl::StrCat(pem->cert, "\n", pem->key)));
    reading_.expiry = pem->expiry;
  }
  return pem->authorities.empty() ? absl::OkStatus() : authorities_.Set(pem->authorities);
}

void TlsFiles::WarnIfEnded() {
  const std::optional<absl::Time>& end = reading_.expiry;
  if (!end.has_value() || *end > absl::Now() || told_end_ == end) return;
  told_end_ = end;
  Log(LogLevel::kWarning, "the TLS certificate has ended, and peers refuse it",
      {{"file", name_}, {"ended", absl::FormatTime(*end, absl::UTCTimeZone())}});
}

TlsFiles::Reading TlsFiles::Reload() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (read_ == nullptr) return reading_;
  const absl::StatusOr<TlsPem> pem = read_();
  std::string seen = TextOf(pem);
  if (seen == seen_) {
    WarnIfEnded();
    return reading_;
  }
  seen_ = std::move(seen);
  const absl::Status status = Load(pem);
  reading_.bad = !status.ok();
  if (status.ok()) {
    ++reading_.reloads;
    Log(LogLevel::kInfo, "TLS was read again", {{"file", name_}});
  } else {
    ++reading_.reloads_failed;
    Log(LogLevel::kError, "TLS is as it was, since a new file is spoilt",
        {{"file", name_}, {"why", status.message()}});
  }
  return reading_;
}

TlsFiles::Reading TlsFiles::reading() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reading_;
}

}  // namespace annulus
