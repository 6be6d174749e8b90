#include "runtime/context/bind_lists.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/limits.h"

namespace annulus {

absl::StatusOr<Pattern> BindLists(const Pattern& pattern, const std::vector<CallList>& lists,
                                  int heads) {
  if (lists.size() > kListsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lists: ", lists.size(), "; expected at most ", kListsMax));
  }
  std::vector<NamedList> named;
  for (const CallList& list : lists) {
    const std::string name = absl::CHexEscape(list.name.substr(0, 64));
    if (list.data == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("list ", name, ": null; expected its data"));
    }
    absl::StatusOr<std::shared_ptr<const KeyList>> made = KeyList::Make(list.data);
    if (!made.ok()) {
      return absl::Status(made.status().code(),
                          absl::StrCat("list ", name, ": ", made.status().message()));
    }
    named.push_back({name, *std::move(made)});
  }
  return pattern.Bind(named, heads);
}

}  // namespace annulus
