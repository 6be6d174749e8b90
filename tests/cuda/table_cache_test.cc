// Which tables of pages are kept on a device, and that a changed one is another; needs no GPU.
#include "attention/cuda/table_cache.h"

#include <cstring>

#include "attention/cuda/work.h"
#include "tests/catch.h"
#include "tests/fake_device.h"

namespace annulus {
namespace {

using cuda::TableCache;
using test::FakeDevice;

const std::byte* At(int64_t address) {
  return reinterpret_cast<const std::byte*>(address);
}

KvTable TableOf(int heads, int64_t blocks) {
  KvTable table(DType::kBF16, 3, heads, 16, 16, blocks);
  table.set_memory(MemoryKind::kDevice);
  for (int h = 0; h < heads; ++h) {
    for (int64_t b = 0; b < blocks; ++b) {
      table.Set(3 + h, b, {At(1000 * b + 16 * h), At(1000 * b + 16 * h + 8), 16, 16});
    }
  }
  return table;
}

TEST_CASE("a table has one stamp for each content, and copies share it until they change") {
  KvTable table = TableOf(2, 3);
  const uint64_t before = table.stamp();
  CHECK(before != 0);
  KvTable copy = table;
  CHECK(copy.stamp() == before);
  copy.Set(3, 1, {});
  CHECK(copy.stamp() != before);
  CHECK(table.stamp() == before);
  table.Extend(9);
  CHECK(table.stamp() != before);
  CHECK(table.stamp() != copy.stamp());
  CHECK(KvTable().stamp() != KvTable().stamp());
}

TEST_CASE("a table is kept from the second time on, as the kernels read it") {
  FakeDevice device;
  TableCache cache(device);
  KvTable table = TableOf(2, 5);
  CHECK(cache.Find(table).value() == nullptr);
  const TableCache::Kept kept = cache.Find(table).value();
  REQUIRE(kept != nullptr);
  CHECK(cache.Find(table).value() == kept);
  REQUIRE(kept->size() == 10 * sizeof(cuda::Page));
  cuda::Page page;
  std::memcpy(&page, FakeDevice::Host(kept->data()) + (4 * 2 + 1) * sizeof page, sizeof page);
  CHECK(page.k == At(4016));
  CHECK(page.v == At(4024));
  table.Set(4, 4, {});
  CHECK(cache.Find(table).value() == nullptr);
  CHECK(cache.Find(table).value() != kept);
}

TEST_CASE("the cache holds no more than it may, and what is in use stays") {
  FakeDevice device;
  constexpr size_t kTable = 8 * sizeof(cuda::Page);
  TableCache cache(device, 3 * kTable);
  std::vector<KvTable> tables;
  for (int i = 0; i < 4; ++i) tables.push_back(TableOf(2, 4));
  const auto keep = [&](int i) {
    (void)cache.Find(tables[i]);
    return cache.Find(tables[i]).value();
  };
  const TableCache::Kept first = keep(0);
  (void)keep(1);
  (void)keep(2);
  CHECK(cache.Find(tables[0]).value() == first);  // now the last to go
  (void)keep(3);
  CHECK(cache.Find(tables[0]).value() == first);
  CHECK(cache.Find(tables[1]).value() == nullptr);
  CHECK(FakeDevice::Host(first->data()) != nullptr);
  const KvTable large = TableOf(2, 40);
  CHECK(cache.Find(large).value() == nullptr);
  CHECK(cache.Find(large).value() == nullptr);
}

}  // namespace
}  // namespace annulus
