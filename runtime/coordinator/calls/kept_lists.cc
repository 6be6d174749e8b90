#include "runtime/coordinator/calls/kept_lists.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "attention/key_list.h"
#include "base/peer_address.h"
#include "base/status.h"
#include "runtime/limits.h"
#include "runtime/protocol/cluster/fields.h"
#include "runtime/service/list_not_kept.h"

namespace annulus {
namespace {

// Workers that left are not told apart: what was known of those that joined first goes.
constexpr size_t kKnownWorkersMax = 2 * size_t{kWorkersMax};
// A list of a few bytes takes as much of the cache as what is remembered of it.
constexpr int64_t kEntryBytes = 512;

bool AreSame(const KeyListData& a, const KeyListData& b) {
  return a.unit == b.unit && a.rows == b.rows && a.block_tokens == b.block_tokens &&
         a.heads == b.heads && a.q_begin == b.q_begin && a.begin == b.begin && a.keys == b.keys;
}

}  // namespace

// The data of a list and its number, until nobody has it any more: then workers may forget it.
class KeptLists::Held {
 public:
  Held(std::shared_ptr<Shared> shared, std::shared_ptr<const KeyListData> data)
      : shared_(std::move(shared)), data_(std::move(data)) {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    number_ = ++shared_->last_number;
    shared_->numbers[data_.get()] = number_;
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  ~Held() {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->numbers.erase(data_.get());
    for (auto& [id, worker] : shared_->workers) {
      if (worker.has.erase(number_) > 0) worker.forgets.insert(number_);
    }
  }

  const KeyListData* data() const { return data_.get(); }

 private:
  const std::shared_ptr<Shared> shared_;
  const std::shared_ptr<const KeyListData> data_;
  uint64_t number_ = 0;
};

KeptLists::KeptLists(int64_t bytes_max, uint64_t first_number)
    : shared_(std::make_shared<Shared>()), bytes_({.name = "list_cache_bytes"}, bytes_max) {
  shared_->last_number = first_number;
}

std::shared_ptr<const KeyListData> KeptLists::Find(const Key& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = index_.find(key);
  if (found == index_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->data;
}

void KeptLists::Forget(std::list<Entry>::iterator entry, Gone* gone) {
  bytes_.Add(TenantPeer(entry->key.first), -entry->bytes);
  gone->push_back(std::move(entry->data));
  index_.erase(entry->key);
  entries_.erase(entry);
}

std::shared_ptr<const KeyListData> KeptLists::Keep(const Key& key,
                                                   std::shared_ptr<const KeyListData> data,
                                                   Gone* gone) {
  const int64_t bytes = data->size_bytes() + kEntryBytes;
  if (bytes > ShareOf(bytes_.max())) return data;
  const auto held = std::make_shared<const Held>(shared_, std::move(data));
  std::shared_ptr<const KeyListData> kept(held, held->data());
  const std::lock_guard<std::mutex> lock(mutex_);
  // Another call may have brought it meanwhile.
  if (const auto found = index_.find(key); found != index_.end()) return found->second->data;
  const auto forget_last = [&](auto is_one) {
    const auto last = std::find_if(entries_.rbegin(), entries_.rend(), is_one);
    Forget(std::prev(last.base()), gone);
  };
  const auto is_of_tenant = [&](const Entry& entry) { return entry.key.first == key.first; };
  const std::string tenant = TenantPeer(key.first);
  while (!bytes_.UseBy(tenant).HasShare(bytes)) forget_last(is_of_tenant);
  while (!bytes_.UseBy(tenant).HasRoom(bytes)) forget_last([](const Entry&) { return true; });
  entries_.push_front({key, kept, bytes});
  index_[key] = entries_.begin();
  bytes_.Add(tenant, bytes);
  return kept;
}

absl::Status KeptLists::Resolve(const std::string& tenant, std::vector<CallList>* lists,
                                Gone* gone) {
  for (CallList& list : *lists) {
    if (!list.handle.given()) continue;
    const Key key{tenant, list.handle};
    const auto name = [&] {
      return absl::StrCat("list ", absl::CHexEscape(list.name.substr(0, kListNameBytesMax)));
    };
    std::shared_ptr<const KeyListData> kept = Find(key);
    if (kept == nullptr && list.data == nullptr) {
      return WithListNotKept(absl::FailedPreconditionError(
          absl::StrCat(name(), ": its handle is not kept here; expected its data")));
    }
    if (kept == nullptr) {
      if (const absl::Status status = KeyList::Make(list.data).status(); !status.ok()) {
        return absl::Status(status.code(), absl::StrCat(name(), ": ", status.message()));
      }
      kept = Keep(key, list.data, gone);
    }
    if (list.data != nullptr && list.data != kept && !AreSame(*list.data, *kept)) {
      return absl::InvalidArgumentError(absl::StrCat(
          name(), ": its handle came before with other data; expected a handle of its own"));
    }
    list.data = std::move(kept);
  }
  return absl::OkStatus();
}

uint64_t KeptLists::NumberOf(const KeyListData& data) const {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  const auto found = shared_->numbers.find(&data);
  return found == shared_->numbers.end() ? 0 : found->second;
}

bool KeptLists::Has(WorkerId worker, uint64_t number) const {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  const auto found = shared_->workers.find(worker);
  return found != shared_->workers.end() && found->second.has.count(number) > 0;
}

std::vector<uint64_t> KeptLists::ToForget(WorkerId worker) const {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  const auto found = shared_->workers.find(worker);
  if (found == shared_->workers.end()) return {};
  const std::set<uint64_t>& all = found->second.forgets;
  const size_t count = std::min(all.size(), wire::kForgetListsMax);
  return {all.begin(), std::next(all.begin(), static_cast<std::ptrdiff_t>(count))};
}

// The call still has its lists: none of them is among those to be forgotten.
void KeptLists::Answered(WorkerId id, absl::Span<const uint64_t> had,
                         absl::Span<const uint64_t> forgot) {
  if (had.empty() && forgot.empty()) return;
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  Shared::Worker& worker = shared_->workers[id];
  worker.has.insert(had.begin(), had.end());
  for (const uint64_t number : forgot) worker.forgets.erase(number);
  if (shared_->workers.size() > kKnownWorkersMax) {
    shared_->workers.erase(shared_->workers.begin());
  }
}

int64_t KeptLists::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_.in_use();
}

}  // namespace annulus
