#include "runtime/worker/list_store.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus {

absl::StatusOr<std::vector<NumberedList>> ListStore::Take(const std::vector<wire::List>& lists) {
  std::vector<NumberedList> taken;
  taken.reserve(lists.size());
  for (const wire::List& list : lists) {
    NumberedList& to = taken.emplace_back(NumberedList{list.name, nullptr, list.number});
    if (list.number == 0) {
      to.data = std::shared_ptr<const KeyListData>(std::shared_ptr<void>(), &*list.data);
      continue;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<const KeyListData>& kept = kept_[list.number];
    if (kept == nullptr && list.data.has_value()) {
      kept = std::make_shared<const KeyListData>(*list.data);
    }
    to.data = kept;
    if (kept != nullptr) continue;
    kept_.erase(list.number);
    return absl::FailedPreconditionError(
        absl::StrCat("list ", list.number, ": not kept here; expected its data"));
  }
  return taken;
}

std::vector<std::shared_ptr<const KeyListData>> ListStore::Forget(
    absl::Span<const uint64_t> numbers) {
  std::vector<std::shared_ptr<const KeyListData>> gone;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const uint64_t number : numbers) {
    const auto found = kept_.find(number);
    if (found == kept_.end()) continue;
    gone.push_back(std::move(found->second));
    kept_.erase(found);
  }
  return gone;
}

std::vector<std::shared_ptr<const KeyListData>> ListStore::ForgetAll() {
  std::vector<std::shared_ptr<const KeyListData>> gone;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [number, data] : kept_) gone.push_back(std::move(data));
  kept_.clear();
  return gone;
}

}  // namespace annulus
