// AdmittedWorkers: the keys that open a coordinator's door to workers, and where each of those
// takes uploads. A worker asks for its key at the authenticated door and names it when it connects;
// it asks again while it has no coordinator, which keeps its key good. Keys of which nothing is
// heard go: who is a member by then stays one. Thread-safe.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "comm/link_key.h"
#include "comm/messenger.h"

namespace annulus {

class AdmittedWorkers {
 public:
  static constexpr absl::Duration kKeyTime = absl::Seconds(60);  // since it was last asked for

  // The messenger must outlive this. Of more than `keys_max` keys the oldest goes.
  AdmittedWorkers(Messenger& messenger, size_t keys_max)
      : messenger_(messenger), keys_max_(keys_max) {}

  // A key for a worker that takes uploads at `data_address` from now on. One that it has already
  // stays while it is good; `before` is its bytes, or anything else.
  LinkKey Admit(absl::string_view before, const std::string& data_address, absl::Time now);
  void Dismiss(const LinkKey& key);

  // PERMISSION_DENIED unless the worker that connected with this key may say that it takes uploads
  // at this address.
  absl::Status Check(const LinkKey& key, absl::string_view data_address, absl::Time now);

 private:
  struct Entry {
    LinkKey key;
    std::string data_address;
    absl::Time asked;
  };

  std::list<Entry>::iterator Find(absl::string_view key);
  void Drop(std::list<Entry>::iterator entry);

  Messenger& messenger_;
  const size_t keys_max_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // by when they were asked for, the oldest first
};

}  // namespace annulus
