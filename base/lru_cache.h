// A small cache that forgets what was not asked for longest. Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <unordered_map>
#include <utility>

namespace annulus {

// Of keys that are a few numbers.
struct NumbersHash {
  template <size_t N>
  size_t operator()(const std::array<int64_t, N>& numbers) const {
    uint64_t hash = 0;
    for (const int64_t number : numbers) {
      hash = (hash ^ static_cast<uint64_t>(number)) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

template <typename T, typename Key = std::string, typename Hash = std::hash<Key>>
class LruCache {
 public:
  explicit LruCache(size_t entries_max) : entries_max_(entries_max) {}

  // nullptr if there is none; valid until the next Insert.
  const T* Find(const Key& key) {
    const auto found = index_.find(key);
    if (found == index_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return &found->second->second;
  }

  // Replaces what was under the key.
  void Insert(const Key& key, T value) {
    if (const auto found = index_.find(key); found != index_.end()) {
      entries_.erase(found->second);
      index_.erase(found);
    }
    entries_.emplace_front(key, std::move(value));
    index_[key] = entries_.begin();
    if (entries_.size() > entries_max_) {
      index_.erase(entries_.back().first);
      entries_.pop_back();
    }
  }

  // Forgets every value of which `is_gone` says so.
  template <typename Predicate>
  void EraseIf(Predicate is_gone) {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (!is_gone(entry->second)) {
        ++entry;
        continue;
      }
      index_.erase(entry->first);
      entry = entries_.erase(entry);
    }
  }

 private:
  using Entry = std::pair<Key, T>;

  const size_t entries_max_;
  std::list<Entry> entries_;  // most recently asked for first
  std::unordered_map<Key, typename std::list<Entry>::iterator, Hash> index_;
};

}  // namespace annulus
