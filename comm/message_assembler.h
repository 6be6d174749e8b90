// MessageAssembler: puts one peer's messages together from the pieces that its transport brings, in
// any order, and gives them out in the order they were sent. Nothing that a piece says is believed:
// what no sender of ours would say is an error, and what may be held is bounded. Pure, for a test
// and a fuzzer to drive; not thread-safe.
//
// The data of a message are its body, if that is too long to travel beside them, and its payload.
// Each of the two is cut into pieces of `piece_bytes` (piece_map.h); a message without data is one
// empty piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "comm/byte_budget.h"
#include "comm/messenger.h"
#include "comm/piece_map.h"

namespace annulus {

struct MessagePiece {
  uint64_t sequence = 0;       // the sender's count of messages
  uint64_t offset = 0;         // in the message's data
  uint64_t body_bytes = 0;     // of the data
  uint64_t payload_bytes = 0;  // of the data
  uint32_t type = 0;
  absl::string_view text = {};  // the body, if it is not of the data, beside the first piece
  absl::Span<const std::byte> data = {};
};

// Of the data of a message: the bytes of the piece that begins at `offset`.
size_t PieceBytesAt(uint64_t offset, uint64_t body_bytes, uint64_t payload_bytes,
                    size_t piece_bytes);

class MessageAssembler {
 public:
  struct Limits {
    size_t message_bytes_max = 0;  // body and payload
    size_t text_bytes_max = 0;     // of a body beside the data
    uint64_t messages_max = 0;     // over the peer's life
    uint64_t ahead_max = 0;        // messages that may be begun beyond the one that is due
    size_t held_bytes_max = 0;     // begun, or whole and not taken yet
  };

  // `all` bounds what all assemblers hold together, and outlives this.
  MessageAssembler(const Limits& limits, size_t piece_bytes, ByteBudget* all)
      : limits_(limits), piece_bytes_(piece_bytes), budget_(limits.held_bytes_max, all) {}

  void SetLimits(const Limits& limits) {
    limits_ = limits;
    budget_.SetMax(limits.held_bytes_max);
  }

  // INVALID_ARGUMENT for what no sender of ours says, RESOURCE_EXHAUSTED naming the bound: nothing
  // more can be made of this peer's messages.
  absl::Status Add(const MessagePiece& piece);

  // Messages that are whole and whose turn has come. Take needs one.
  size_t ready() const { return ready_.size(); }
  Message Take();

  // Counts the calls since a piece has come, while a message is half there: 0 otherwise.
  int Quiet() { return begun_.empty() ? quiet_ = 0 : ++quiet_; }

  size_t held_bytes() const { return budget_.held_bytes(); }

 private:
  struct Incoming {
    Message message;
    uint64_t body_bytes = 0;
    bool has_text = false;  // the piece that brings it has come
    PieceMap body;
    PieceMap payload;
    ByteBudget::Hold hold;

    bool whole() const { return has_text && body.whole() && payload.whole(); }
  };

  absl::Status Check(const MessagePiece& piece) const;
  absl::Status Begin(const MessagePiece& piece, size_t text_bytes, Incoming* incoming);
  static absl::Status Fill(const MessagePiece& piece, Incoming* incoming);
  void Promote();

  Limits limits_;
  const size_t piece_bytes_;
  ByteBudget budget_;
  uint64_t next_ = 0;                   // the message that is due
  std::map<uint64_t, Incoming> begun_;  // by sequence
  std::deque<Incoming> ready_;
  int quiet_ = 0;
};

}  // namespace annulus
