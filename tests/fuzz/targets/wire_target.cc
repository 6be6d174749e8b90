#include <string>

#include "base/check.h"
#include "runtime/protocol/cluster/wire.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

void CheckSame(const Message& a, const Message& b) {
  ANNULUS_CHECK(a.type == b.type);
  ANNULUS_CHECK(a.body == b.body);
  ANNULUS_CHECK(Text(a.payload.span()) == Text(b.payload.span()));
}

}  // namespace

bool TryWire(Bytes input) {
  Message message;
  message.type = TakeByte(&input);
  const size_t low = TakeByte(&input);
  const size_t body_bytes = low | size_t{TakeByte(&input)} << 8;
  message.body = std::string(Text(TakeFront(&input, body_bytes)));
  message.payload = Buffer::Copy(input.data(), input.size());
  const absl::StatusOr<wire::Body> body = wire::Decode(message);
  if (!body.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(body.status()));
    return false;
  }
  const Message first = wire::Encode(*body, message.payload);
  const absl::StatusOr<wire::Body> back = wire::Decode(first);
  ANNULUS_CHECK(back.ok());
  CheckSame(first, wire::Encode(*back, message.payload));
  return true;
}

}  // namespace annulus::fuzz
