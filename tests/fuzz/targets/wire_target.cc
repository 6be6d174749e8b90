#include <string>

#include "base/check.h"
#include "runtime/wire/wire.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

// What the body says that the payload begins with.
size_t TensorBytes(const wire::Body& body) {
  if (const auto* step = std::get_if<wire::Step>(&body)) return step->tensor_bytes;
  if (const auto* done = std::get_if<wire::StepDone>(&body)) return done->tensor_bytes;
  return 0;
}

void CheckSame(const Message& a, const Message& b) {
  ANNULUS_CHECK(a.type == b.type);
  ANNULUS_CHECK(a.header == b.header);
  ANNULUS_CHECK(Text(a.payload.span()) == Text(b.payload.span()));
}

}  // namespace

bool TryWire(Bytes input) {
  Message message;
  message.type = TakeByte(&input);
  const size_t low = TakeByte(&input);
  const size_t header_bytes = (low | size_t{TakeByte(&input)} << 8) % (kHeaderBytesMax + 1);
  message.header = std::string(Text(TakeFront(&input, header_bytes)));
  message.payload = Buffer::Copy(input.data(), input.size());
  const absl::StatusOr<wire::Body> body = wire::Decode(message);
  if (!body.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(body.status()));
    return false;
  }
  const Buffer tensors = message.payload.Part(0, TensorBytes(*body));
  const Message first = wire::Encode(*body, tensors);
  const absl::StatusOr<wire::Body> back = wire::Decode(first);
  ANNULUS_CHECK(back.ok());
  ANNULUS_CHECK(TensorBytes(*back) == tensors.size());
  CheckSame(first, wire::Encode(*back, tensors));
  return true;
}

}  // namespace annulus::fuzz
