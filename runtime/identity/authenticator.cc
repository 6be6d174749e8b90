#include "runtime/identity/authenticator.h"

#include <algorithm>
#include <list>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/lru_cache.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/identity/audit_log.h"

namespace annulus {
namespace {

struct DigestHash {
  size_t operator()(const Sha256Digest& digest) const { return digest[0]; }
};

// `path` as the file `from` means it.
std::string Beside(const std::string& from, const std::string& path) {
  const size_t slash = from.rfind('/');
  if (path[0] == '/' || slash == std::string::npos) return path;
  return absl::StrCat(from.substr(0, slash + 1), path);
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("file ", QuotedEnd(path), ": ", status.message()));
}

}  // namespace

// What the files said when they were read. The verified tokens go with it.
class Authenticator::Known {
 public:
  Known(AuthFile file, absl::optional<KeySet> keys)
      : file_(std::move(file)), keys_(std::move(keys)), verified_(kVerifiedMax) {}

  const AuthFile& file() const { return file_; }

  absl::StatusOr<Caller> OfToken(absl::string_view token, absl::Time now) {
    if (token.empty() || token.size() > kTokenBytesMax) {
      return absl::UnauthenticatedError(
          absl::StrCat("token: ", token.size(), " bytes; expected 1 to ", kTokenBytesMax));
    }
    const Sha256Digest digest = Sha256(token);
    // Every digest is compared, whichever it is: the time tells nothing.
    const Caller* found = nullptr;
    for (const AuthFile::Token& known : file_.tokens) {
      if (SameDigest(known.digest, digest)) found = &known.caller;
    }
    if (found != nullptr) return *found;
    if (!keys_.has_value() || !LooksLikeJwt(token)) {
      return absl::UnauthenticatedError("token: none that is known; expected one of the file");
    }
    return Verified(digest, token, now);
  }

 private:
  absl::StatusOr<Caller> Verified(const Sha256Digest& digest, absl::string_view token,
                                  absl::Time now) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const Caller* const caller = verified_.Find(digest);
      if (caller != nullptr && now < caller->expires) return *caller;
    }
    absl::StatusOr<Caller> caller = VerifyJwt(token, *keys_, file_.jwt->rules, now);
    if (!caller.ok()) return absl::UnauthenticatedError(caller.status().message());
    const std::lock_guard<std::mutex> lock(mutex_);
    verified_.Insert(digest, *caller);
    return caller;
  }

  const AuthFile file_;
  const absl::optional<KeySet> keys_;
  std::mutex mutex_;
  LruCache<Caller, Sha256Digest, DigestHash> verified_;  // under mutex_
};

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Open(const std::string& path,
                                                                   absl::Duration reload_period,
                                                                   AuditLog* audit,
                                                                   Certificates certificates) {
  std::unique_ptr<Authenticator> authenticator(new Authenticator(path, audit, certificates));
  ANNULUS_RETURN_IF_ERROR(authenticator->Reload());
  if (reload_period > absl::ZeroDuration()) {
    authenticator->thread_ =
        std::thread([self = authenticator.get(), reload_period] { self->Watch(reload_period); });
  }
  return authenticator;
}

Authenticator::~Authenticator() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Authenticator::Watch(absl::Duration period) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_.wait_for(lock, absl::ToChronoNanoseconds(period), [this] { return stopping_; })) {
    lock.unlock();
    (void)Reload();  // it has told of what it could not read
    lock.lock();
  }
}

absl::Status Authenticator::Load(bool* changed) {
  ANNULUS_ASSIGN_OR_RETURN(std::string text, auth_.Read());
  absl::StatusOr<AuthFile> file = ParseAuthFile(text);
  if (!file.ok()) return InFile(auth_.path(), file.status());
  if (certificates_ == Certificates::kNotAsked && file->tokens.empty() && !file->jwt.has_value()) {
    return InFile(auth_.path(),
                  absl::InvalidArgumentError(absl::StrCat(
                      "certificates: ", file->certificates.size(),
                      ", and callers are asked for none; expected tokens or jwt, or that callers "
                      "must show certificates (--tls-client-ca)")));
  }
  absl::optional<KeySet> keys;
  std::unique_ptr<WatchedFile> jwks;
  if (file->jwt.has_value()) {
    jwks = std::make_unique<WatchedFile>(Beside(auth_.path(), file->jwt->jwks), kAuthFileBytesMax);
    absl::StatusOr<std::string> set = jwks->Read();
    if (!set.ok()) {
      return InFile(auth_.path(),
                    absl::InvalidArgumentError(absl::StrCat("jwt.jwks: ", set.status().message())));
    }
    absl::StatusOr<KeySet> parsed = KeySet::Parse(*set);
    if (!parsed.ok()) return InFile(jwks->path(), parsed.status());
    keys.emplace(*std::move(parsed));
    absl::StrAppend(&text, absl::string_view("\0", 1), *set);
  }
  jwks_ = std::move(jwks);
  *changed = text != loaded_;
  if (!*changed) return absl::OkStatus();
  loaded_ = std::move(text);
  auto known = std::make_shared<Known>(*std::move(file), std::move(keys));
  const std::lock_guard<std::mutex> lock(mutex_);
  known_.swap(known);
  return absl::OkStatus();
}

absl::Status Authenticator::Reload() {
  const std::lock_guard<std::mutex> lock(reload_mutex_);
  const bool first = loaded_.empty();
  if (!first && failed_.empty() && !auth_.MayHaveChanged() &&
      (jwks_ == nullptr || !jwks_->MayHaveChanged())) {
    return absl::OkStatus();
  }
  bool changed = false;
  const absl::Status status = Load(&changed);
  if (first) return status;
  bad_ = !status.ok();
  if (status.ok()) {
    failed_.clear();
    if (!changed) return status;
    ++reloads_;
    Log(LogLevel::kInfo, "authentication was read again", {{"file", auth_.path()}});
    if (audit_ != nullptr) audit_->Tell("reload", {}, status.code(), 0, auth_.path());
  } else if (failed_ != status.message()) {
    failed_ = std::string(status.message());
    ++reloads_failed_;
    Log(LogLevel::kError, "authentication is as it was, since its new file is spoilt",
        {{"file", auth_.path()}, {"why", status.message()}});
    if (audit_ != nullptr) audit_->Tell("reload", {}, status.code(), 0, status.message());
  }
  return status;
}

std::shared_ptr<Authenticator::Known> Authenticator::known() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return known_;
}

absl::StatusOr<Caller> Authenticator::OfToken(absl::string_view token, absl::Time now) {
  const std::shared_ptr<Known> known = this->known();
  ANNULUS_ASSIGN_OR_RETURN(Caller caller, known->OfToken(token, now));
  caller.quotas = known->file().quotas.Of(caller.tenant);
  return caller;
}

bool Authenticator::knows_certificates() const {
  return !known()->file().certificates.empty();
}

absl::StatusOr<Caller> Authenticator::OfCertificate(absl::Span<const std::string> names) {
  const std::shared_ptr<Known> known = this->known();
  for (Caller caller : known->file().certificates) {
    if (std::find(names.begin(), names.end(), caller.name) == names.end()) continue;
    caller.quotas = known->file().quotas.Of(caller.tenant);
    return caller;
  }
  return absl::UnauthenticatedError("certificate: none that is known; expected one of the file");
}

Quotas Authenticator::quotas() const {
  return known()->file().quotas;
}

}  // namespace annulus
