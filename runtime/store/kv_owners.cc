// Whose contexts hold how much.
#include <algorithm>

#include "runtime/store/kv_store.h"

namespace annulus {
namespace {

using Lock = std::lock_guard<std::mutex>;

}  // namespace

KvStore::Held KvStore::HeldBy(ContextId id) const {
  const Lock lock(mutex_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return {};
  const Context& context = *found->second;
  int64_t bytes = 0;
  for (const auto& layer : context.layers) {
    if (layer != nullptr) bytes += layer->pages.pages_held() * layer->pages.page_bytes();
  }
  return {bytes, context.owned != nullptr ? context.owned->bytes() : 0};
}

std::shared_ptr<ByteCount> KvStore::CountOf(const std::string& owner) {
  if (owner.empty()) return nullptr;
  const Lock lock(mutex_);
  std::shared_ptr<ByteCount>& count = owners_[owner].count;
  if (count == nullptr) count = std::make_shared<ByteCount>(&kv_bytes_);
  return count;
}

std::shared_ptr<const ByteCount> KvStore::OwnerCount(ContextId id) const {
  const absl::StatusOr<Context*> context = FindContext(id);
  return context.ok() ? (*context)->owned : nullptr;
}

std::vector<OwnerBytes> KvStore::TellOwners(size_t owners_max) {
  const Lock lock(mutex_);
  std::vector<OwnerBytes> told;
  const size_t in_turn = std::min({kOwnersInTurn, owners_.size(), owners_max});
  for (size_t i = 0; i < in_turn; ++i) {
    auto at = owners_.upper_bound(last_told_);
    if (at == owners_.end()) at = owners_.begin();
    last_told_ = at->first;
    told.push_back(Tell(at));
  }
  for (auto next = owners_.begin(); next != owners_.end() && told.size() < owners_max;) {
    const auto at = next++;
    if (at->second.count->bytes() != at->second.told) told.push_back(Tell(at));
  }
  return told;
}

// With the mutex held.
OwnerBytes KvStore::Tell(std::map<std::string, Owner>::iterator at) {
  Owner& owner = at->second;
  owner.told = owner.count->bytes();
  OwnerBytes told{at->first, owner.told};
  const bool gone = owner.told == 0 && owner.count.use_count() == 1;  // it has no context
  owner.told_gone = gone ? owner.told_gone + 1 : 0;
  if (owner.told_gone >= kToldGoneMax) owners_.erase(at);
  return told;
}

}  // namespace annulus
