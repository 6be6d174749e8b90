#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "comm/message_assembler.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

constexpr size_t kPieceBytes = 16;
constexpr MessageAssembler::Limits kLimits{.message_bytes_max = 4096,
                                           .text_bytes_max = 32,
                                           .messages_max = 200,
                                           .ahead_max = 8,
                                           .held_bytes_max = 16384};

// A message as the pieces that were taken make it.
struct Model {
  std::string text;
  std::vector<int> data;  // -1: has not come

  void Take(const MessagePiece& piece) {
    data.resize(piece.body_bytes + piece.payload_bytes, -1);
    if (piece.offset == 0) text = std::string(piece.text);
    ANNULUS_CHECK(piece.offset + piece.data.size() <= data.size());
    for (size_t i = 0; i < piece.data.size(); ++i) {
      int& byte = data[piece.offset + i];
      ANNULUS_CHECK(byte == -1);
      byte = static_cast<int>(piece.data[i]);
    }
  }

  void CheckIs(const Message& message) const {
    const size_t body_bytes = data.size() - message.payload.size();
    ANNULUS_CHECK(body_bytes == 0 ? message.body == text : message.body.size() == body_bytes);
    for (size_t i = 0; i < data.size(); ++i) {
      const int byte = i < body_bytes ? static_cast<unsigned char>(message.body[i])
                                      : static_cast<int>(message.payload.data()[i - body_bytes]);
      ANNULUS_CHECK(byte == data[i]);
    }
  }
};

uint64_t Take16(Bytes* input) {
  const uint64_t low = TakeByte(input);
  return low | uint64_t{TakeByte(input)} << 8;
}

// Its top bit makes a number one of those that sums overflow with.
uint64_t TakeNumber(Bytes* input) {
  const uint64_t number = Take16(input);
  return (number & 0x8000) == 0 ? number : ~uint64_t{0} - (number & 0x7fff);
}

}  // namespace

bool TryPieces(Bytes input) {
  MessageAssembler assembler(kLimits, kPieceBytes, nullptr);
  std::map<uint64_t, Model> models;
  uint64_t taken = 0;
  while (!input.empty()) {
    MessagePiece piece;
    piece.sequence = TakeByte(&input);
    piece.type = TakeByte(&input);
    piece.offset = TakeNumber(&input);
    piece.body_bytes = TakeNumber(&input);
    piece.payload_bytes = TakeNumber(&input);
    const size_t text_bytes = TakeByte(&input);
    piece.text = Text(TakeFront(&input, text_bytes));
    piece.data = TakeFront(&input, TakeByte(&input));
    if (!assembler.Add(piece).ok()) break;
    models[piece.sequence].Take(piece);
    ANNULUS_CHECK(assembler.held_bytes() <= kLimits.held_bytes_max);
    // Some wait for a while.
    while (assembler.ready() > piece.type % 3) models.at(taken++).CheckIs(assembler.Take());
  }
  for (; assembler.ready() > 0; ++taken) models.at(taken).CheckIs(assembler.Take());
  return taken > 0;
}

}  // namespace annulus::fuzz
