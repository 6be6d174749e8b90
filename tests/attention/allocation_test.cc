// A warm backend allocates nothing where a row's blocks need no untangling, as those of unions may.
// This program counts what operator new hands out; sanitizers
// bring their own operators, and leave the case to the other builds.
#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/attention/problem.h"
#include "tests/catch.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
namespace {

std::atomic<int64_t> allocations{0};

void* Count(std::size_t size, std::size_t alignment) {
  ++allocations;
  const std::size_t whole = (size + alignment) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, whole)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) {
  return Count(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Count(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace annulus {
namespace {

TEST_CASE("a warm CPU backend allocates nothing, for one query or many") {
  const char* pattern = GENERATE("causal", "window(300)", "s2(64,4,8)");
  CAPTURE(pattern);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {1, 500}) {
      ProblemShape shape;
      shape.dtype = shape.q_dtype = dtype;
      shape.group = 2;
      shape.kv_tokens = 5000;
      shape.q_ranges = {{5000 - rows, 5000}};
      shape.pattern = pattern;
      const Problem problem(shape, 3);
      Partial partial = problem.Identity();
      const AttendArgs args = problem.Args(&problem.all(), &partial);
      const std::unique_ptr<Backend> backend = *MakeBackend("cpu", 1);
      REQUIRE(backend->Attend(args).ok());
      const int64_t before = allocations.load();
      CHECK(before > 0);
      REQUIRE(backend->Attend(args).ok());
      CHECK(allocations.load() - before == 0);
    }
  }
}

}  // namespace
}  // namespace annulus
#endif
