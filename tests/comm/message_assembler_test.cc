#include "comm/message_assembler.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr size_t kPiece = 100;

MessageAssembler::Limits Limits() {
  return {.message_bytes_max = 10'000,
          .text_bytes_max = 50,
          .messages_max = 1000,
          .ahead_max = 8,
          .held_bytes_max = 30'000};
}

// A message with its pieces, which borrow from it.
struct Sent {
  Sent(uint64_t sequence, size_t body_bytes, size_t payload_bytes, std::string text = "")
      : text(std::move(text)), body(body_bytes, 'b'), payload(payload_bytes, 'p') {
    for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i + sequence);
    for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(3 * i + sequence);
    uint64_t offset = 0;
    do {
      MessagePiece piece{sequence, offset, body_bytes, payload_bytes,
                         static_cast<uint32_t>(sequence)};
      if (offset == 0) piece.text = this->text;
      const size_t bytes = PieceBytesAt(offset, body_bytes, payload_bytes, kPiece);
      const std::string& part = offset < body_bytes ? body : payload;
      const size_t at = offset - (offset < body_bytes ? 0 : body_bytes);
      piece.data = {reinterpret_cast<const std::byte*>(part.data()) + at, bytes};
      pieces.push_back(piece);
      offset += bytes;
    } while (offset < body_bytes + payload_bytes);
  }
  Sent(const Sent&) = delete;

  void CheckIs(const Message& message) const {
    CHECK(message.body == (body.empty() ? text : body));
    CHECK(std::string(reinterpret_cast<const char*>(message.payload.data()),
                      message.payload.size()) == payload);
  }

  std::string text, body, payload;
  std::vector<MessagePiece> pieces;
};

TEST_CASE("pieces in any order make whole messages in the order of their sender") {
  const uint64_t seed = GENERATE(range(1, 50));
  CAPTURE(seed);
  Rng rng(seed);
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  std::vector<std::unique_ptr<Sent>> sent;
  std::vector<MessagePiece> pieces;
  for (uint64_t i = 0; i < 8; ++i) {
    const size_t body = rng.Below(3) == 0 ? rng.Below(400) : 0;
    const std::string text(body == 0 ? rng.Below(20) : 0, 't');
    const size_t payload = rng.Below(4) == 0 ? 100 * rng.Below(4) : rng.Below(900);
    sent.push_back(std::make_unique<Sent>(i, body, payload, text));
    pieces.insert(pieces.end(), sent.back()->pieces.begin(), sent.back()->pieces.end());
  }
  for (size_t i = pieces.size(); i > 1; --i) std::swap(pieces[i - 1], pieces[rng.Below(i)]);
  size_t taken = 0;
  for (const MessagePiece& piece : pieces) {
    REQUIRE(assembler.Add(piece).ok());
    while (assembler.ready() > 0) sent[taken++]->CheckIs(assembler.Take());
  }
  CHECK(taken == sent.size());
  CHECK(assembler.held_bytes() == 0);
}

// What ran on the coordinator's heap: the second piece is right by its own numbers alone.
TEST_CASE("a piece lies within what the first piece of its message announced") {
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  const Sent small(0, 0, 300);
  const Sent large(0, 0, 9000);
  REQUIRE(assembler.Add(small.pieces[0]).ok());
  CHECK(absl::IsInvalidArgument(assembler.Add(large.pieces[80])));
}

TEST_CASE("pieces that say what no sender says are refused") {
  const Sent message(0, 150, 300);
  MessagePiece piece = message.pieces[1];
  const std::string text = "text";
  SECTION("twice the same") {
    piece = message.pieces[0];
  }
  SECTION("between two pieces") {
    piece.offset += 1;
  }
  SECTION("too short") {
    piece.data.remove_suffix(1);
  }
  SECTION("across body and payload") {
    piece.data = {message.pieces[2].data.data(), 100};
  }
  SECTION("beyond the end") {
    piece.offset = 450;
  }
  SECTION("far beyond the end") {
    piece.offset = ~uint64_t{0} - 50;
  }
  SECTION("another size of the body") {
    piece.body_bytes = 160;
  }
  SECTION("another size of the payload") {
    piece.payload_bytes = 310;
  }
  SECTION("another type") {
    piece.type = 7;
  }
  SECTION("text beside a later piece") {
    piece.text = text;
  }
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  REQUIRE(assembler.Add(message.pieces[0]).ok());
  const absl::Status status = assembler.Add(piece);
  CAPTURE(status.ToString());
  CHECK(absl::IsInvalidArgument(status));
  CHECK(assembler.ready() == 0);
}

TEST_CASE("a message that is whole does not come again") {
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  const Sent message(0, 0, 10);
  REQUIRE(assembler.Add(message.pieces[0]).ok());
  CHECK(absl::IsInvalidArgument(assembler.Add(message.pieces[0])));
}

TEST_CASE("what a peer may have half done is bounded, by name") {
  ByteBudget all(40'000);
  MessageAssembler assembler(Limits(), kPiece, &all);
  const auto why = [&](MessagePiece piece) { return std::string(assembler.Add(piece).message()); };
  const auto claim = [](uint64_t sequence, uint64_t body, uint64_t payload) {
    return MessagePiece{.sequence = sequence, .body_bytes = body, .payload_bytes = payload};
  };
  CHECK(why(claim(0, 0, uint64_t{1} << 62)).find("(message_bytes_max)") != std::string::npos);
  CHECK(why(claim(0, ~uint64_t{0}, ~uint64_t{0})).find("message_bytes_max") != std::string::npos);
  CHECK(why(claim(0, 6000, 6000)).find("message_bytes_max") != std::string::npos);
  CHECK(why(claim(9, 0, 0)).find("ahead_max") != std::string::npos);
  CHECK(why(claim(1000, 0, 0)).find("messages_max") != std::string::npos);
  const std::string text(51, 'x');
  CHECK(why({.text = text}).find("text_bytes_max") != std::string::npos);
  CHECK(assembler.held_bytes() == 0);
  std::vector<std::unique_ptr<Sent>> sent;
  for (uint64_t i = 1; i <= 4; ++i) sent.push_back(std::make_unique<Sent>(i, 0, 9000));
  for (int i = 0; i < 3; ++i) REQUIRE(assembler.Add(sent[i]->pieces[5]).ok());
  CHECK(why(sent[3]->pieces[5]).find("held_bytes_max") != std::string::npos);
  // Together with others.
  MessageAssembler other(Limits(), kPiece, &all);
  REQUIRE(other.Add(sent[0]->pieces[0]).ok());
  CHECK(absl::IsResourceExhausted(other.Add(sent[1]->pieces[0])));
}

TEST_CASE("messages that wait to be taken count as held") {
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  absl::Status status;
  uint64_t sequence = 0;
  while (status.ok() && sequence < 900) {
    status = assembler.Add({.sequence = sequence++});
  }
  CHECK(absl::IsResourceExhausted(status));
  CHECK(assembler.ready() > 50);
}

TEST_CASE("silence counts in the midst of a message alone") {
  MessageAssembler assembler(Limits(), kPiece, nullptr);
  const Sent message(0, 0, 250);
  CHECK(assembler.Quiet() == 0);
  REQUIRE(assembler.Add(message.pieces[0]).ok());
  CHECK(assembler.Quiet() == 1);
  CHECK(assembler.Quiet() == 2);
  REQUIRE(assembler.Add(message.pieces[1]).ok());
  CHECK(assembler.Quiet() == 1);
  REQUIRE(assembler.Add(message.pieces[2]).ok());
  CHECK(assembler.Quiet() == 0);
}

}  // namespace
}  // namespace annulus
