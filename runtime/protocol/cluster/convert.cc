// Bodies to messages and back. The number of a message is its body's place in the variant.
#include <array>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/fields/read.h"
#include "runtime/fields/write.h"
#include "runtime/protocol/cluster/fields.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus::wire {
namespace {

// What an item takes, about: so that a Work's text grows once.
constexpr size_t kItemBytes = 96;

std::array<size_t, 2> TensorsOf(const WorkItem& item) {
  return {item.append_bytes, item.query_bytes};
}
std::array<size_t, 1> TensorsOf(const ItemPartial& item) {
  return {item.bytes};
}

// The payload is the items' tensors.
template <typename T>
absl::Status CheckTensorBytes(const T& m, const char* field, size_t tensor_bytes) {
  size_t left = tensor_bytes;
  for (const auto& item : m.items) {
    for (const size_t bytes : TensorsOf(item)) {
      if (bytes > left) return BadField({nullptr, field}, bytes, "bytes of the payload");
      left -= bytes;
    }
  }
  if (left == 0) return absl::OkStatus();
  return BadField({nullptr, field}, left, "all bytes of the payload to be some item's");
}

template <typename T>
absl::StatusOr<Body> DecodeAs(const Message& message) {
  constexpr auto kDescription = DescriptionOf(static_cast<const T*>(nullptr));
  ANNULUS_ASSIGN_OR_RETURN(T body, ValueOf<T>(message.body, kDescription.name));
  if constexpr (std::is_same_v<T, Work>) {
    ANNULUS_RETURN_IF_ERROR(CheckTensorBytes(body, "Work.items", message.payload.size()));
  } else if constexpr (std::is_same_v<T, Partials>) {
    ANNULUS_RETURN_IF_ERROR(CheckTensorBytes(body, "Partials.items", message.payload.size()));
  }
  return body;
}

using Decoder = absl::StatusOr<Body> (*)(const Message&);

template <size_t... kIndex>
constexpr auto DecodersOf(std::index_sequence<kIndex...>) {
  return std::array<Decoder, sizeof...(kIndex)>{
      DecodeAs<std::variant_alternative_t<kIndex, Body>>...};
}

}  // namespace

Message Encode(const Body& body, Buffer tensors) {
  Message message;
  message.type = static_cast<uint32_t>(body.index() + 1);
  message.payload = std::move(tensors);
  FieldWriter out;
  std::visit(
      [&out]<typename T>(const T& m) {
        if constexpr (requires { m.items; }) out.Reserve(m.items.size() * kItemBytes);
        WriteFields(m, &out);
      },
      body);
  message.body = std::move(out).Take();
  return message;
}

absl::StatusOr<Body> Decode(const Message& message) {
  constexpr auto kDecoders = DecodersOf(std::make_index_sequence<std::variant_size_v<Body>>());
  if (message.type < 1 || message.type > kDecoders.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("message type: ", message.type, "; expected 1 to ", kDecoders.size()));
  }
  return kDecoders[message.type - 1](message);
}

}  // namespace annulus::wire
