#include "runtime/client/kept_handles.h"

#include <algorithm>

#include "runtime/service/list_not_kept.h"

namespace annulus {
namespace {

constexpr int kWithDataMax = 1024;

}  // namespace

bool KeptHandles::HasAny(const std::vector<CallList>& lists) {
  return std::any_of(lists.begin(), lists.end(),
                     [](const CallList& list) { return list.handle.given(); });
}

KeptHandles::Key KeptHandles::KeyOf(const ListHandle& handle) {
  return {static_cast<int64_t>(handle.high), static_cast<int64_t>(handle.low)};
}

std::vector<CallList> KeptHandles::ToSend(const std::vector<CallList>& lists) {
  std::vector<CallList> sent = lists;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (CallList& list : sent) {
    if (!list.handle.given()) continue;
    const Key key = KeyOf(list.handle);
    const Known* found = known_.Find(key);
    if (found == nullptr) continue;
    if (found->with_data == 0) {
      list.data = nullptr;
    } else {
      known_.Insert(key, {found->with_data - 1, found->next_time});
    }
  }
  return sent;
}

void KeptHandles::Answered(const std::vector<CallList>& lists, const absl::Status& status) {
  const bool is_forgotten = IsListNotKept(status);
  if (!status.ok() && !is_forgotten) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const CallList& list : lists) {
    if (!list.handle.given()) continue;
    const Key key = KeyOf(list.handle);
    const Known* found = known_.Find(key);
    if (found == nullptr) {
      if (status.ok()) known_.Insert(key, {});
    } else if (is_forgotten && list.data == nullptr) {
      const int next = found->next_time;
      known_.Insert(key, {next - 1, std::min(2 * next, kWithDataMax)});
    }
  }
}

}  // namespace annulus
