#include "runtime/context/bound_patterns.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/bind_lists.h"

namespace annulus {
namespace {

std::string KeyOf(const Pattern& pattern, const std::vector<NumberedList>& lists, int heads) {
  std::string key = absl::StrCat(pattern.id(), " ", heads);
  for (const NumberedList& list : lists) {
    absl::StrAppend(&key, " ", list.number, " ", list.name.size(), list.name);
  }
  return key;
}

}  // namespace

bool AllAreKept(const std::vector<NumberedList>& lists) {
  return std::all_of(lists.begin(), lists.end(), [](const auto& list) { return list.number != 0; });
}

bool Uses(const Pattern& pattern, const KeyListData& data) {
  return std::any_of(pattern.lists().begin(), pattern.lists().end(),
                     [&](const NamedList& list) { return &list.list->data() == &data; });
}

absl::StatusOr<std::shared_ptr<const Pattern>> BoundPatterns::Bind(
    const Pattern& pattern, const std::vector<NumberedList>& lists, int heads) {
  const bool remembers = AllAreKept(lists);
  const std::string key = remembers ? KeyOf(pattern, lists, heads) : "";
  if (remembers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto* found = patterns_.Find(key)) return *found;
  }
  std::vector<CallList> named;
  named.reserve(lists.size());
  for (const NumberedList& list : lists) named.push_back({list.name, list.data});
  ANNULUS_ASSIGN_OR_RETURN(Pattern bound, BindLists(pattern, named, heads));
  auto shared = std::make_shared<const Pattern>(std::move(bound));
  if (!remembers) return shared;
  const std::lock_guard<std::mutex> lock(mutex_);
  patterns_.Insert(key, shared);
  return shared;
}

void BoundPatterns::Forget(const KeyListData& data) {
  const std::lock_guard<std::mutex> lock(mutex_);
  patterns_.EraseIf([&](const auto& pattern) { return Uses(*pattern, data); });
}

}  // namespace annulus
