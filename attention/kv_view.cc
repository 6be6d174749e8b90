#include "attention/kv_view.h"

#include "base/check.h"

namespace annulus {

KvTable KvTable::FromTensors(const TensorView& k, const TensorView& v) {
  ANNULUS_CHECK(k.tokens == v.tokens && k.heads == v.heads && k.dtype == v.dtype);
  KvTable table(k.dtype, 0, static_cast<int>(k.heads), static_cast<int>(k.dim),
                static_cast<int>(v.dim), BlocksOf(k.tokens));
  const auto k_stride = static_cast<int32_t>(k.token_stride);
  const auto v_stride = static_cast<int32_t>(v.token_stride);
  for (int head = 0; head < table.kv_heads(); ++head) {
    for (int64_t block = 0; block < table.blocks(); ++block) {
      const int64_t token = block * kBlockTokens;
      table.Set(head, block, {k.Row(token, head), v.Row(token, head), k_stride, v_stride});
    }
  }
  return table;
}

uint64_t KvTable::stamp() const {
  return stamp_.Get();
}

uint64_t KvTable::Stamp::Get() const {
  static std::atomic<uint64_t> last{0};
  uint64_t value = value_.load();
  if (value != 0) return value;
  const uint64_t next = ++last;
  return value_.compare_exchange_strong(value, next) ? next : value;
}

}  // namespace annulus
