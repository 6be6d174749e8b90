// The readers of request streams against messages that no honest client sends: no network here.
#include "runtime/protocol/public/tensor_stream.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr StreamLimits kLimits{.request_bytes_max = 4096, .piece_bytes_max = 1024};

// Feeds messages to a reader and tells how it ended, how much it reserved, and what came out.
struct AppendRun {
  explicit AppendRun(const std::vector<v1::AppendPart>& parts) {
    AppendReader reader(
        kLimits,
        [&](const AppendRequest&, int64_t bytes) {
          reserved += bytes;
          return absl::OkStatus();
        },
        [&](const AppendRequest& piece) {
          starts.push_back(piece.start);
          tokens += piece.k.tokens;
          return absl::OkStatus();
        });
    for (const v1::AppendPart& part : parts) {
      status = reader.Add(part);
      if (!status.ok()) return;
    }
    status = reader.Finish();
  }
  absl::Status status;
  int64_t reserved = 0;
  int64_t tokens = 0;
  std::vector<int64_t> starts;
};

struct AttendRun {
  explicit AttendRun(const std::vector<v1::AttendPart>& parts) {
    AttendReader reader(kLimits, [&](const AttendRequest&, int64_t bytes) {
      reserved += bytes;
      return absl::OkStatus();
    });
    for (const v1::AttendPart& part : parts) {
      status = reader.Add(part);
      if (!status.ok()) return;
    }
    status = reader.Finish().status();
  }
  absl::Status status;
  int64_t reserved = 0;
};

template <typename Part>
Part Data(size_t bytes) {
  Part part;
  part.set_data(std::string(bytes, 'x'));
  return part;
}

void SetShape(v1::TensorShape* shape, const char* dtype, int64_t tokens, int64_t heads,
              int64_t dim) {
  shape->set_dtype(dtype);
  shape->set_tokens(tokens);
  shape->set_heads(heads);
  shape->set_dim(dim);
}

// 10 tokens of 16 bytes of K and 24 of V, in pieces of 4.
v1::AppendPart AppendHead(const std::function<void(v1::AppendHeader*)>& change = {}) {
  v1::AppendPart part;
  v1::AppendHeader* header = part.mutable_header();
  header->set_context(1);
  header->set_start(100);
  SetShape(header->mutable_k(), "bf16", 10, 2, 4);
  SetShape(header->mutable_v(), "f32", 10, 2, 3);
  header->set_piece_tokens(4);
  if (change) change(header);
  return part;
}

// 3 × 2 × 8 of f16: 96 bytes.
v1::AttendPart AttendHead(const std::function<void(v1::AttendHeader*)>& change = {}) {
  v1::AttendPart part;
  v1::AttendHeader* header = part.mutable_header();
  SetShape(header->mutable_q(), "f16", 3, 2, 8);
  header->set_pattern("causal");
  header->set_kv_len(3);
  if (change) change(header);
  return part;
}

std::string Message(const absl::Status& status) {
  REQUIRE(absl::IsInvalidArgument(status));
  return std::string(status.message().data(), status.message().size());
}

std::string AppendError(const std::function<void(v1::AppendHeader*)>& change) {
  const AppendRun run({AppendHead(change), Data<v1::AppendPart>(1)});
  CHECK(run.reserved == 0);
  return Message(run.status);
}

std::string AttendError(const std::function<void(v1::AttendHeader*)>& change) {
  const AttendRun run({AttendHead(change), Data<v1::AttendPart>(1)});
  CHECK(run.reserved == 0);
  return Message(run.status);
}

TEST_CASE("pieces are handed on as soon as they are whole") {
  const AppendRun run({AppendHead(), Data<v1::AppendPart>(399), Data<v1::AppendPart>(1)});
  CHECK(run.status.ok());
  CHECK(run.starts == std::vector<int64_t>{100, 104, 108});
  CHECK(run.tokens == 10);
  CHECK(run.reserved == 4 * 40);
}

TEST_CASE("an upload's payload must be exactly what its header declares") {
  CHECK(Message(AppendRun({}).status).find("header: none; ") == 0);
  CHECK(Message(AppendRun({v1::AppendPart()}).status).find("header: none; ") == 0);
  CHECK(Message(AppendRun({Data<v1::AppendPart>(40)}).status).find("header: none; ") == 0);
  CHECK(Message(AppendRun({AppendHead(), AppendHead()}).status).find("header: given twice") == 0);
  CHECK(Message(AppendRun({AppendHead(), v1::AppendPart()}).status).find("data: 0 bytes") == 0);
  const AppendRun few({AppendHead(), Data<v1::AppendPart>(399)});
  CHECK(Message(few.status) ==
        "data: ended early; expected the rows of 10 tokens (8 of this request's 10 tokens are "
        "committed)");
  CHECK(few.tokens == 8);
  const AppendRun many({AppendHead(), Data<v1::AppendPart>(401)});
  CHECK(Message(many.status).find("data: more bytes than k and v declare") == 0);
  CHECK(many.tokens == 10);
}

TEST_CASE("an upload's header is checked field by field before memory is taken") {
  using Header = v1::AppendHeader;
  CHECK(AppendError([](Header* h) { h->set_start(-1); }).find("start: -1") == 0);
  CHECK(AppendError([](Header* h) { h->set_start(INT64_MAX); }).find("start: 92") == 0);
  CHECK(AppendError([](Header* h) { h->clear_k(); }).find("k.dtype: ") == 0);
  CHECK(AppendError([](Header* h) { h->mutable_k()->set_dtype("f64"); }).find("k.dtype: ") == 0);
  CHECK(AppendError([](Header* h) { h->mutable_k()->set_tokens(0); }) ==
        "k.tokens: 0; expected 1 or more");
  CHECK(AppendError([](Header* h) { h->mutable_v()->set_heads(-7); }) ==
        "v.heads: -7; expected 1 or more");
  CHECK(AppendError([](Header* h) { h->mutable_v()->set_tokens(9); }).find("v.tokens: 9") == 0);
  CHECK(AppendError([](Header* h) { h->set_piece_tokens(0); }).find("piece_tokens: 0") == 0);
  CHECK(AppendError([](Header* h) { h->set_piece_tokens(11); }).find("piece_tokens: 11") == 0);
  CHECK(AppendError([](Header* h) {
          h->mutable_k()->set_heads(1 << 20);
        }).find("piece_tokens: 4 of ") == 0);
  CHECK(AppendError([](Header* h) {
          SetShape(h->mutable_k(), "f32", int64_t{1} << 40, 1 << 20, 8);
        }).find("k: [1099511627776, 1048576, 8] of f32") == 0);
  // Each tensor's size fits int64; their sum would not.
  CHECK(AppendError([](Header* h) {
          SetShape(h->mutable_k(), "f16", 1, int64_t{1} << 31, (int64_t{1} << 31) - 1);
          SetShape(h->mutable_v(), "f16", 1, int64_t{1} << 31, (int64_t{1} << 31) - 1);
          h->set_piece_tokens(1);
        }).find("piece_tokens: 1 of 184467440") == 0);
}

TEST_CASE("a request's queries must be exactly what its header declares") {
  CHECK(AttendRun({AttendHead(), Data<v1::AttendPart>(95), Data<v1::AttendPart>(1)}).status.ok());
  const auto with_data = [](size_t bytes) {
    return AttendHead([bytes](v1::AttendHeader* h) { h->set_data(std::string(bytes, 'x')); });
  };
  CHECK(AttendRun({with_data(96)}).status.ok());
  CHECK(AttendRun({with_data(40), Data<v1::AttendPart>(56)}).status.ok());
  CHECK(Message(AttendRun({with_data(97)}).status) == "q: more bytes than declared; expected 96");
  CHECK(Message(AttendRun({with_data(96), Data<v1::AttendPart>(1)}).status) ==
        "q: more bytes than declared; expected 96");
  CHECK(Message(AttendRun({}).status).find("header: none; ") == 0);
  CHECK(Message(AttendRun({AttendHead()}).status) == "q: 0 bytes of data; expected 96");
  CHECK(Message(AttendRun({AttendHead(), Data<v1::AttendPart>(95)}).status) ==
        "q: 95 bytes of data; expected 96");
  CHECK(Message(AttendRun({AttendHead(), Data<v1::AttendPart>(97)}).status) ==
        "q: more bytes than declared; expected 96");
}

TEST_CASE("a request's header is checked field by field before memory is taken") {
  using Header = v1::AttendHeader;
  CHECK(AttendError([](Header* h) { h->set_q_start(-3); }).find("q_start: -3") == 0);
  CHECK(AttendError([](Header* h) { h->set_kv_len(INT64_MIN); }).find("kv_len: -9") == 0);
  CHECK(AttendError([](Header* h) { h->set_plan("rign"); }).find("plan: ") == 0);
  CHECK(AttendError([](Header* h) { h->mutable_q()->set_dtype("F16"); }).find("q.dtype: ") == 0);
  CHECK(AttendError([](Header* h) { h->mutable_q()->set_dim(INT64_MIN); }).find("q.dim: -9") == 0);
  CHECK(AttendError([](Header* h) { h->mutable_q()->set_tokens(129); }) ==
        "q: [129, 2, 8], 4128 bytes; expected at most 4096 (request_bytes_max)");
  CHECK(AttendError([](Header* h) { h->set_request_id(std::string(129, 'i')); }) ==
        "request_id: 129 bytes; expected at most 128");
}

TEST_CASE("a refused reservation is the answer") {
  AttendReader reader(
      kLimits, [](const AttendRequest&, int64_t) { return absl::ResourceExhaustedError("full"); });
  CHECK(absl::IsResourceExhausted(reader.Add(AttendHead())));
}

TEST_CASE("a reply that does not fit the question is refused by the client") {
  const auto reply = [](int64_t tokens, int64_t dim, int64_t lse_dim, const char* dtype) {
    v1::AttendReplyPart part;
    SetShape(part.mutable_header()->mutable_out(), dtype, tokens, 2, dim);
    SetShape(part.mutable_header()->mutable_lse(), "f32", tokens, 2, lse_dim);
    return part;
  };
  const auto run = [](const std::vector<v1::AttendReplyPart>& parts) {
    AttendReplyReader reader(3, 2);
    for (const v1::AttendReplyPart& part : parts) {
      if (absl::Status status = reader.Add(part); !status.ok()) return status;
    }
    return reader.Finish().status();
  };
  const auto data = Data<v1::AttendReplyPart>(3 * 2 * (8 + 1) * 4);
  const auto with_data = [&](size_t bytes) {
    v1::AttendReplyPart part = reply(3, 8, 1, "f32");
    part.mutable_header()->set_data(std::string(bytes, 'x'));
    return part;
  };
  CHECK(run({reply(3, 8, 1, "f32"), data}).ok());
  CHECK(run({with_data(3 * 2 * (8 + 1) * 4)}).ok());
  CHECK(absl::IsInternal(run({with_data(3 * 2 * (8 + 1) * 4 + 1)})));
  CHECK(absl::IsInternal(run({with_data(1), data})));
  CHECK(absl::IsInternal(run({})));
  CHECK(absl::IsInternal(run({data})));
  CHECK(absl::IsInternal(run({reply(3, 8, 1, "f32")})));
  CHECK(absl::IsInternal(run({reply(3, 8, 1, "f32"), data, Data<v1::AttendReplyPart>(1)})));
  CHECK(absl::IsInternal(run({reply(3, 8, 1, "f32"), reply(3, 8, 1, "f32")})));
  CHECK(absl::IsInternal(run({reply(2, 8, 1, "f32"), data})));
  CHECK(absl::IsInternal(run({reply(3, 8, 2, "f32"), data})));
  CHECK(absl::IsInternal(run({reply(3, 8, 1, "bf16"), data})));
  CHECK(absl::IsInternal(run({reply(3, 1 << 30, 1, "f32"), data})));
}

// One byte flipped, dropped, doubled, or the tail cut or replaced.
std::string Mutate(std::string bytes, Rng* rng) {
  for (uint64_t n = 1 + rng->Below(4); n > 0; --n) {
    if (bytes.empty()) bytes.push_back(static_cast<char>(rng->Next()));
    const size_t at = rng->Below(bytes.size());
    switch (rng->Below(5)) {
      case 0:
        bytes[at] = static_cast<char>(rng->Next());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng->Below(8)));
        break;
      case 2:
        bytes.erase(at, 1 + rng->Below(3));
        break;
      case 3:
        bytes.insert(at, 1 + rng->Below(9), static_cast<char>(rng->Next()));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

// Extents that are interesting alone and in products.
int64_t Extent(Rng* rng) {
  constexpr int64_t kExtents[] = {
      0, 1, 2, 3, 8, 64, -1, -8, 1LL << 20, 1LL << 31, 1LL << 32, 1LL << 62, INT64_MAX, INT64_MIN};
  return kExtents[rng->Below(std::size(kExtents))];
}

TEST_CASE("mutated streams are refused or read, and memory stays within the limits") {
  const uint64_t seed = 731;
  Rng rng(seed);
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < 30'000; ++round) {
    CAPTURE(seed, round);
    const bool shapes = rng.Below(2) == 0;
    std::vector<v1::AppendPart> appends = {AppendHead([&](v1::AppendHeader* h) {
      if (shapes) SetShape(h->mutable_k(), "f32", Extent(&rng), Extent(&rng), Extent(&rng));
      if (shapes) h->mutable_v()->set_tokens(h->k().tokens());
      if (shapes) h->set_piece_tokens(Extent(&rng));
    })};
    std::vector<v1::AttendPart> attends = {AttendHead([&](v1::AttendHeader* h) {
      if (shapes) SetShape(h->mutable_q(), "bf16", Extent(&rng), Extent(&rng), Extent(&rng));
    })};
    for (uint64_t n = rng.Below(4); n > 0; --n) {
      appends.push_back(Data<v1::AppendPart>(rng.Below(300)));
      attends.push_back(Data<v1::AttendPart>(rng.Below(97)));
    }
    // Bytes that are no message never reach a reader: gRPC ends the stream there.
    std::vector<v1::AppendPart> mutated_appends;
    for (const v1::AppendPart& part : appends) {
      v1::AppendPart mutated;
      if (!mutated.ParseFromString(Mutate(part.SerializeAsString(), &rng))) break;
      mutated_appends.push_back(mutated);
    }
    std::vector<v1::AttendPart> mutated_attends;
    for (const v1::AttendPart& part : attends) {
      v1::AttendPart mutated;
      if (!mutated.ParseFromString(Mutate(part.SerializeAsString(), &rng))) break;
      mutated_attends.push_back(mutated);
    }
    for (const auto* parts : {&appends, &mutated_appends}) {
      const AppendRun run(*parts);
      REQUIRE((run.status.ok() || absl::IsInvalidArgument(run.status)));
      REQUIRE(run.reserved <= kLimits.piece_bytes_max);
      ++(run.status.ok() ? accepted : refused);
    }
    for (const auto* parts : {&attends, &mutated_attends}) {
      const AttendRun run(*parts);
      REQUIRE((run.status.ok() || absl::IsInvalidArgument(run.status)));
      REQUIRE(run.reserved <= kLimits.request_bytes_max);
      ++(run.status.ok() ? accepted : refused);
    }
  }
  CHECK(accepted > 0);
  CHECK(refused > 50'000);
}

TEST_CASE("mutated specs are refused or read") {
  const uint64_t seed = 97;
  Rng rng(seed);
  v1::ContextSpec good;
  const ContextSpec value{.heads = 8, .kv_heads = 4, .head_dim = 64, .v_head_dim = 64};
  REQUIRE(ToProto(value, &good).ok());
  REQUIRE(FromProto<ContextSpec>(good).ok());
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    CAPTURE(seed, round);
    v1::ContextSpec mutated;
    if (!mutated.ParseFromString(Mutate(good.SerializeAsString(), &rng))) continue;
    const auto spec = FromProto<ContextSpec>(mutated);
    REQUIRE((spec.ok() || absl::IsInvalidArgument(spec.status())));
    refused += !spec.ok();
  }
  CHECK(refused > 1000);
}

TEST_CASE("a spec's texts are named when they mean nothing") {
  v1::ContextSpec spec;
  REQUIRE(ToProto(ContextSpec{}, &spec).ok());
  v1::ContextSpec bad = spec;
  bad.set_dtype("int8");
  CHECK(Message(FromProto<ContextSpec>(bad).status()).find("dtype: ") == 0);
  bad = spec;
  bad.set_placement("");
  CHECK(Message(FromProto<ContextSpec>(bad).status()).find("placement: ") == 0);
  bad = spec;
  bad.set_partition("block-cyclic:0");
  CHECK(Message(FromProto<ContextSpec>(bad).status()).find("partition: ") == 0);
}

}  // namespace
}  // namespace annulus
