// An array whose copies share their elements until one of them writes: copied, grown and cut by
// chunks, so that copying one of a hundred thousand elements costs as much as a hundred pointers.
// Reading costs one look-up more than in a vector.
// Thread-compatible; copies may be used by different threads as far as their elements may.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace annulus {

template <typename T>
class CowArray {
 public:
  // Cut at a multiple of it, an array copies nothing.
  static constexpr size_t kChunk = 1024;

  CowArray() = default;
  explicit CowArray(size_t size) { Resize(size); }

  size_t size() const {
    return chunks_.empty() ? 0 : (chunks_.size() - 1) * kChunk + chunks_.back()->size();
  }
  const T& operator[](size_t i) const { return (*chunks_[i / kChunk])[i % kChunk]; }

  // Whether a copy may hold the element too.
  bool Shared(size_t i) const { return chunks_[i / kChunk].use_count() > 1; }

  // For writing; valid until the next copy or change of the size.
  T& Mutable(size_t i) { return Own(i / kChunk)[i % kChunk]; }

  // What is added is T().
  void Resize(size_t size) {
    const size_t chunks = (size + kChunk - 1) / kChunk;
    const size_t before = chunks_.size();
    chunks_.resize(chunks);
    for (size_t c = before == 0 ? 0 : before - 1; c + 1 < chunks; ++c) ResizeChunk(c, kChunk);
    if (chunks != 0) ResizeChunk(chunks - 1, size - (chunks - 1) * kChunk);
  }

 private:
  using Chunk = std::vector<T>;

  Chunk& Own(size_t c) {
    std::shared_ptr<Chunk>& chunk = chunks_[c];
    if (chunk.use_count() > 1) chunk = std::make_shared<Chunk>(*chunk);
    return *chunk;
  }
  void ResizeChunk(size_t c, size_t size) {
    if (chunks_[c] == nullptr) chunks_[c] = std::make_shared<Chunk>();
    if (chunks_[c]->size() != size) Own(c).resize(size);
  }

  std::vector<std::shared_ptr<Chunk>> chunks_;
};

}  // namespace annulus
