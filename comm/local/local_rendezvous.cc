#include "comm/local/local_rendezvous.h"

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status LocalRendezvous::Put(absl::string_view key, absl::string_view value) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto [it, inserted] = values_.emplace(std::string(key), std::string(value));
    if (!inserted && it->second != value) {
      return absl::AlreadyExistsError(absl::StrCat("key ", key, " has another value"));
    }
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<std::string> LocalRendezvous::Get(absl::string_view key, absl::Time deadline) {
  const std::string name(key);
  std::unique_lock<std::mutex> lock(mutex_);
  const auto found = [&] { return values_.count(name) != 0; };
  if (deadline == absl::InfiniteFuture()) {
    changed_.wait(lock, found);
  } else if (!changed_.wait_until(lock, absl::ToChronoTime(deadline), found)) {
    return absl::DeadlineExceededError(
        absl::StrCat("nothing under key ", name, " by the deadline"));
  }
  return values_.at(name);
}

}  // namespace annulus
