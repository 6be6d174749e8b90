#include "runtime/protocol/public/token_file.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/identity/encoding.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {
namespace {

constexpr absl::Duration kLookPeriod = absl::Seconds(1);

}  // namespace

TokenFile::TokenFile(const std::string& path) : file_(path, kTokenBytesMax) {}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path) {
  if (path.empty()) return std::unique_ptr<TokenFile>();
  std::unique_ptr<TokenFile> token(new TokenFile(path));
  const absl::Status status = token->Read();
  if (status.ok()) return token;
  return absl::InvalidArgumentError(absl::StrCat("token_file: ", status.message()));
}

absl::Status TokenFile::Read() {
  ANNULUS_ASSIGN_OR_RETURN(const std::string text, file_.Read());
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  if (token.empty() || !std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError(
        absl::StrCat("file ", QuotedEnd(file_.path()),
                     ": holds no token; expected one line of printable ASCII"));
  }
  std::string authorization = absl::StrCat(kBearer, token);
  if (authorization == authorization_) return absl::OkStatus();
  authorization_ = std::move(authorization);
  ++version_;
  return absl::OkStatus();
}

std::string TokenFile::Authorization() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::Time now = absl::Now();
  if (now >= look_at_) {
    look_at_ = now + kLookPeriod;
    if (file_.MayHaveChanged()) (void)Read();  // what cannot be read now may be in a second
  }
  return authorization_;
}

void TokenFile::Refresh() {
  const std::lock_guard<std::mutex> lock(mutex_);
  (void)Read();
}

}  // namespace annulus
