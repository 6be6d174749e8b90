#include "runtime/server/refusals.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace annulus {
namespace {

bool IsNamePart(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_';
}

size_t IndexOf(absl::string_view reason) {
  return static_cast<size_t>(std::find(kRefusalReasons.begin(), kRefusalReasons.end(), reason) -
                             kRefusalReasons.begin());
}

}  // namespace

// The first bound that is named: what follows may be what a caller calls itself.
absl::string_view RefusalReason(const absl::Status& refused) {
  absl::string_view text(refused.message().data(), refused.message().size());
  if (absl::EndsWith(text, ", its quota")) return "quota";
  while (!text.empty()) {
    const auto end = std::find_if_not(text.begin(), text.end(), IsNamePart);
    const absl::string_view word = text.substr(0, static_cast<size_t>(end - text.begin()));
    const size_t index = IndexOf(word);
    if (index < kRefusalReasons.size() && absl::StrContains(word, '_')) {
      return kRefusalReasons[index];
    }
    text.remove_prefix(std::max<size_t>(1, word.size()));
  }
  return "other";
}

absl::Status Refusals::Note(absl::Status status) {
  if (!absl::IsResourceExhausted(status)) return status;
  ++counts_[IndexOf(RefusalReason(status))];
  return status;
}

std::vector<std::pair<absl::string_view, uint64_t>> Refusals::Read() const {
  std::vector<std::pair<absl::string_view, uint64_t>> all;
  for (size_t i = 0; i < counts_.size(); ++i) {
    all.emplace_back(kRefusalReasons[i], counts_[i].load());
  }
  return all;
}

}  // namespace annulus
