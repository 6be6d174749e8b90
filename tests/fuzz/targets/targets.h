// What is fuzzed: every reader of bytes from outside. A target takes any bytes, reads them as its
// reader does and, where they are accepted, checks what must hold of what was read. A finding ends
// the process. libFuzzer makes inputs up (`./dev fuzz`); tests/fuzz runs each target over the files
// of corpus/<name>/ in every build. Targets are pure functions, quick enough for thousands of calls
// a second; thread-safe.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace annulus::fuzz {

using Bytes = absl::Span<const std::byte>;

// A worker link's message: its type (a byte), the length of its body (two bytes, little endian),
// body, payload. What decodes must encode and decode to itself.
bool TryWire(Bytes input);

// A message of the public protocol, as server and client read it; the first byte says which
// (protocol_target.cc). Values must convert back to themselves.
bool TryProtocol(Bytes input);

// A stream of tensors, as server and client read it: the first byte says which
// (streams_target.cc), then messages, a two-byte length before each. Streams hand on exactly what
// they declared and reserved.
bool TryStreams(Bytes input);

// Pieces of a peer's messages (pieces_target.cc). Messages that become whole are exactly what came.
bool TryPieces(Bytes input);

// What the ranks of an exchange, and others, may do to one of them (exchange_target.cc). A receive
// that ends well is written all over, and nothing else is written.
bool TryExchange(Bytes input);

// A coordinator (the first byte is even) or a worker, and what its peers say (handshake_target.cc).
bool TryHandshake(Bytes input);

// KV heads and a context's length (a byte each), then a pattern's text. Rows, masks and counts of
// what parses must agree.
bool TryPattern(Bytes input);

// A .npy file. The tensor must lie within the file.
bool TryNpy(Bytes input);

// A tensor's name, a line break, a .safetensors file.
bool TrySafetensors(Bytes input);

// A --config file. Written down again it must say the same.
bool TryConfig(Bytes input);

// A --cluster or --calibration file.
bool TryCluster(Bytes input);

// What says who calls; the first byte says which: 'a' a file of --auth, 'k' a JWKS, 't' a signed
// token, for fixed keys, rules and time. What is refused is refused in one line.
bool TryIdentity(Bytes input);

// Their names are those of the corpora; `run` says whether the reader accepted the input.
struct Target {
  absl::string_view name;
  bool (*run)(Bytes input);
};
inline constexpr Target kTargets[] = {
    {"wire", TryWire},         {"protocol", TryProtocol},       {"pattern", TryPattern},
    {"npy", TryNpy},           {"safetensors", TrySafetensors}, {"config", TryConfig},
    {"cluster", TryCluster},   {"streams", TryStreams},         {"pieces", TryPieces},
    {"exchange", TryExchange}, {"handshake", TryHandshake},     {"identity", TryIdentity},
};

// The first bytes of an input, of a size that the format fixes.
inline Bytes TakeFront(Bytes* input, size_t count) {
  const Bytes front = input->subspan(0, count);  // fewer, if there are no more
  input->remove_prefix(front.size());
  return front;
}
inline unsigned TakeByte(Bytes* input) {
  const Bytes front = TakeFront(input, 1);
  return front.empty() ? 0 : static_cast<unsigned>(front[0]);
}

inline absl::string_view Text(Bytes input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

}  // namespace annulus::fuzz
