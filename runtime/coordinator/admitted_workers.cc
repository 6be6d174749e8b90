#include "runtime/coordinator/admitted_workers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/secret.h"

namespace annulus {

LinkKey AdmittedWorkers::Admit(absl::string_view before, const std::string& data_address,
                               absl::Time now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (!entries_.empty() && entries_.front().asked + kKeyTime <= now) Drop(entries_.begin());
  if (const auto known = Find(before); known != entries_.end()) {
    known->data_address = data_address;
    known->asked = now;
    entries_.splice(entries_.end(), entries_, known);
    return known->key;
  }
  if (entries_.size() >= keys_max_) Drop(entries_.begin());
  entries_.push_back({LinkKey::Random(), data_address, now});
  messenger_.AdmitKey(entries_.back().key);
  return entries_.back().key;
}

void AdmittedWorkers::Dismiss(const LinkKey& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto known = Find(key.view()); known != entries_.end()) Drop(known);
}

absl::Status AdmittedWorkers::Check(const LinkKey& key, absl::string_view data_address,
                                    absl::Time now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = Find(key.view());
  if (entry == entries_.end() || entry->asked + kKeyTime <= now) {
    return absl::PermissionDeniedError("its key is good no longer");
  }
  if (entry->data_address == data_address) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("data_address: ", Quoted(data_address),
                                                  "; expected ", Quoted(entry->data_address),
                                                  ", with which it joined"));
}

std::list<AdmittedWorkers::Entry>::iterator AdmittedWorkers::Find(absl::string_view key) {
  return std::find_if(entries_.begin(), entries_.end(),
                      [&](const Entry& entry) { return SameSecret(entry.key.view(), key); });
}

void AdmittedWorkers::Drop(std::list<Entry>::iterator entry) {
  messenger_.DismissKey(entry->key);
  entries_.erase(entry);
}

}  // namespace annulus
