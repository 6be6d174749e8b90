#include "comm/message_assembler.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

// What a message takes beside its bytes, about.
constexpr size_t kMessageBytes = 256;

absl::Status Odd(absl::string_view field, uint64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("piece.", field, ": ", value, "; expected ", expected));
}

absl::Status TooMuch(absl::string_view what, uint64_t value, absl::string_view bound,
                     uint64_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, ": ", value, "; expected at most ", limit, " (", bound, ")"));
}

}  // namespace

size_t PieceBytesAt(uint64_t offset, uint64_t body_bytes, uint64_t payload_bytes,
                    size_t piece_bytes) {
  const uint64_t end = offset < body_bytes ? body_bytes : body_bytes + payload_bytes;
  return static_cast<size_t>(std::min<uint64_t>(piece_bytes, end - offset));
}

// Against what holds for any message. Sums are safe once both sizes are bounded.
absl::Status MessageAssembler::Check(const MessagePiece& piece) const {
  if (piece.sequence < next_) return Odd("sequence", piece.sequence, "a message not whole yet");
  if (piece.sequence >= limits_.messages_max) {
    return TooMuch("messages", piece.sequence + 1, "messages_max", limits_.messages_max);
  }
  if (piece.sequence - next_ > limits_.ahead_max) {
    return TooMuch("messages ahead", piece.sequence - next_, "ahead_max", limits_.ahead_max);
  }
  if (piece.text.size() > limits_.text_bytes_max) {
    return TooMuch("text bytes", piece.text.size(), "text_bytes_max", limits_.text_bytes_max);
  }
  for (const uint64_t bytes : {piece.body_bytes, piece.payload_bytes}) {
    if (bytes > limits_.message_bytes_max) {
      return TooMuch("message bytes", bytes, "message_bytes_max", limits_.message_bytes_max);
    }
  }
  const uint64_t bytes = piece.body_bytes + piece.payload_bytes + piece.text.size();
  if (bytes > limits_.message_bytes_max) {
    return TooMuch("message bytes", bytes, "message_bytes_max", limits_.message_bytes_max);
  }
  if (!piece.text.empty() && (piece.offset != 0 || piece.body_bytes != 0)) {
    return Odd("text", piece.text.size(), "none beside a later piece or a body of the data");
  }
  return absl::OkStatus();
}

absl::Status MessageAssembler::Begin(const MessagePiece& piece, size_t text_bytes,
                                     Incoming* incoming) {
  const uint64_t bytes = piece.body_bytes + piece.payload_bytes + text_bytes + kMessageBytes;
  if (!budget_.Take(static_cast<size_t>(bytes), &incoming->hold)) {
    return TooMuch("bytes held", budget_.held_bytes() + bytes, "held_bytes_max",
                   limits_.held_bytes_max);
  }
  incoming->message.type = piece.type;
  incoming->body_bytes = piece.body_bytes;
  incoming->message.body.resize(piece.body_bytes);
  if (piece.payload_bytes != 0) incoming->message.payload = Buffer(piece.payload_bytes);
  if (piece.body_bytes != 0) incoming->body = PieceMap(piece.body_bytes, piece_bytes_);
  if (piece.payload_bytes != 0 || piece.body_bytes == 0) {
    incoming->payload = PieceMap(piece.payload_bytes, piece_bytes_);
  }
  return absl::OkStatus();
}

// A piece lies in the body or in the payload, whole.
absl::Status MessageAssembler::Fill(const MessagePiece& piece, Incoming* incoming) {
  Message& message = incoming->message;
  if (message.type != piece.type || incoming->body_bytes != piece.body_bytes ||
      message.payload.size() != piece.payload_bytes) {
    return Odd("sequence", piece.sequence, "all pieces of a message to say the same of it");
  }
  const bool in_body = piece.offset < piece.body_bytes;
  const uint64_t at = piece.offset - (in_body ? 0 : piece.body_bytes);
  if (!(in_body ? incoming->body : incoming->payload).Take(at, piece.data.size())) {
    return Odd("offset", piece.offset, "a piece of the message, each of them once");
  }
  if (piece.offset == 0) {
    incoming->has_text = true;
    if (piece.body_bytes == 0) message.body.assign(piece.text.data(), piece.text.size());
  }
  if (piece.data.empty()) return absl::OkStatus();
  char* const to = in_body ? message.body.data() : reinterpret_cast<char*>(message.payload.data());
  std::memcpy(to + at, piece.data.data(), piece.data.size());
  return absl::OkStatus();
}

absl::Status MessageAssembler::Add(const MessagePiece& piece) try {
  ANNULUS_RETURN_IF_ERROR(Check(piece));
  quiet_ = 0;
  // Nearly all messages are one piece, and come when they are due.
  const bool due = piece.sequence == next_ && begun_.empty();
  if (due && piece.data.size() == piece.body_bytes + piece.payload_bytes &&
      (piece.body_bytes == 0 || piece.payload_bytes == 0)) {
    Incoming incoming;
    ANNULUS_RETURN_IF_ERROR(Begin(piece, piece.text.size(), &incoming));
    ANNULUS_RETURN_IF_ERROR(Fill(piece, &incoming));
    if (!incoming.whole()) return Odd("offset", piece.offset, "the first piece of its message");
    ready_.push_back(std::move(incoming));
    ++next_;
    return absl::OkStatus();
  }
  auto it = begun_.find(piece.sequence);
  if (it == begun_.end()) {
    Incoming incoming;
    // Its text may come later.
    ANNULUS_RETURN_IF_ERROR(Begin(piece, limits_.text_bytes_max, &incoming));
    it = begun_.emplace(piece.sequence, std::move(incoming)).first;
  }
  ANNULUS_RETURN_IF_ERROR(Fill(piece, &it->second));
  Promote();
  return absl::OkStatus();
} catch (const std::bad_alloc&) {
  return absl::ResourceExhaustedError("no memory for the message");
}

void MessageAssembler::Promote() {
  for (auto it = begun_.begin(); it != begun_.end() && it->first == next_ && it->second.whole();
       it = begun_.begin()) {
    ready_.push_back(std::move(it->second));
    begun_.erase(it);
    ++next_;
  }
}

Message MessageAssembler::Take() {
  Message message = std::move(ready_.front().message);
  ready_.pop_front();
  return message;
}

}  // namespace annulus
