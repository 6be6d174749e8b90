#include "runtime/context/check_track.h"

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status CheckTrack(const Selector& word, const ContextSpec& track, int64_t ratio) {
  const Index& index = *word.index();
  if (track.kv_heads == index.heads && ratio == index.ratio) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: ", word.name(), ": a track of heads ", track.kv_heads, " and ratio ",
                   ratio, "; expected heads ", index.heads, " and ratio ", index.ratio));
}

}  // namespace annulus
