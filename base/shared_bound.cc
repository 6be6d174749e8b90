#include "base/shared_bound.h"

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status AboveBound(const BoundWords& words, const BoundUse& use, int64_t more) {
  const std::string taken = use.HasShare(more) ? absl::StrCat(use.in_use, " in use")
                                               : absl::StrCat(words.peer, " has ", use.by_peer,
                                                              ", and at most half is one's");
  return absl::ResourceExhaustedError(absl::StrCat(words.name, ": ", use.max, words.value, "; ",
                                                   taken, ", ", words.taker, " needs ", more,
                                                   " more; ", words.advice));
}

BoundUse SharedBound::UseBy(const std::string& peer) const {
  const auto found = peers_.find(peer);
  return {max_, in_use_, found == peers_.end() ? 0 : found->second, peer.empty()};
}

absl::Status SharedBound::Check(const std::string& peer, int64_t more) const {
  const BoundUse use = UseBy(peer);
  return use.HasRoom(more) ? absl::OkStatus() : AboveBound(words_, use, more);
}

void SharedBound::Add(const std::string& peer, int64_t count) {
  in_use_ += count;
  if (peer.empty() || count == 0) return;
  const auto has = peers_.try_emplace(peer, 0).first;
  has->second += count;
  if (has->second == 0) peers_.erase(has);
}

}  // namespace annulus
