// The numbers of messages on the wire: each body's place in the variant. Private to this folder.
#pragma once

#include <cstdint>
#include <type_traits>
#include <variant>

#include "runtime/wire/wire.h"

namespace annulus::wire {

template <typename T, size_t kIndex = 0>
constexpr uint32_t TypeOf() {
  if constexpr (std::is_same_v<T, std::variant_alternative_t<kIndex, Body>>) {
    return kIndex + 1;
  } else {
    return TypeOf<T, kIndex + 1>();
  }
}

}  // namespace annulus::wire
