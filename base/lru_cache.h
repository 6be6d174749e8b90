// A small cache that forgets what was not asked for longest. Not thread-safe.
#pragma once

#include <cstddef>
#include <list>
#include <string>
#include <unordered_map>
#include <utility>

namespace annulus {

template <typename T>
class LruCache {
 public:
  explicit LruCache(size_t entries_max) : entries_max_(entries_max) {}

  // nullptr if there is none; valid until the next Insert.
  const T* Find(const std::string& key) {
    const auto found = index_.find(key);
    if (found == index_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return &found->second->second;
  }

  // Replaces what was under the key.
  void Insert(const std::string& key, T value) {
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

 private:
  using Entry = std::pair<std::string, T>;

  const size_t entries_max_;
  std::list<Entry> entries_;  // most recently asked for first
  std::unordered_map<std::string, typename std::list<Entry>::iterator> index_;
};

}  // namespace annulus
