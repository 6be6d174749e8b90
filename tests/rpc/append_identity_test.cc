// Appends that outlast their caller's token: each piece and each direct append comes in by the
// door.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "tests/rpc/guarded.h"
#include "tests/rpc/quiet.h"

namespace annulus {
namespace {

using test::Quiet;

// The token's leeway counts: it is good for `left` from now on.
std::string TokenFor(const Guarded& guarded, absl::Duration left) {
  return guarded.SignedToken(absl::Now() - kJwtLeeway + left);
}

// A stream of an append of three tokens, each a piece.
struct RawAppend {
  RawAppend(const Guarded& guarded, const std::string& token)
      : guarded(guarded), stub(v1::Annulus::NewStub(MakeChannel(guarded.endpoint()))) {
    context.AddMetadata(kAuthorizationKey, "Bearer " + token);
    stream = stub->Append(&context, &result);
    v1::AppendPart part;
    v1::AppendHeader* header = part.mutable_header();
    header->set_piece_tokens(1);
    header->mutable_k()->set_dtype("f32");
    header->mutable_k()->set_tokens(3);
    header->mutable_k()->set_heads(1);
    header->mutable_k()->set_dim(8);
    stream->Write(part);
  }
  void Send(size_t bytes) {
    v1::AppendPart part;
    part.set_data(std::string(bytes, '\0'));
    stream->Write(part);
  }
  void AwaitPieces(int count) const {
    while (guarded.service.calls < count) absl::SleepFor(absl::Milliseconds(1));
  }
  absl::Status Finish() {
    stream->WritesDone();
    return FromGrpc(stream->Finish());
  }

  static constexpr size_t kPieceBytes = 32;
  const Guarded& guarded;
  grpc::ClientContext context;
  std::unique_ptr<v1::Annulus::Stub> stub;
  v1::AppendResult result;
  std::unique_ptr<grpc::ClientWriter<v1::AppendPart>> stream;
};

TEST_CASE("an append ends at the next piece once its token was taken back or is another's") {
  const Quiet quiet;
  for (const bool another : {false, true}) {
    const Guarded guarded;
    RawAppend raw(guarded, "tenant");
    raw.Send(RawAppend::kPieceBytes);
    raw.AwaitPieces(1);
    std::string entry = TokenEntry(another ? "tenant" : "other", "tenant");
    if (another) entry.replace(entry.find("t-tenant"), 8, "t-stolen");
    guarded.Know(entry);
    REQUIRE(guarded.authenticator->Reload().ok());
    raw.Send(2 * RawAppend::kPieceBytes);
    const absl::Status end = raw.Finish();
    INFO(end);
    CHECK(absl::IsUnauthenticated(end));
    CHECK(absl::StrContains(end.message(), "1 of this request's 3 tokens are committed"));
    CHECK(guarded.service.pieces.size() == 1);
  }
}

TEST_CASE("an append ends with its token, within a piece too") {
  const Quiet quiet;
  const Guarded guarded;
  const absl::Duration left = absl::Milliseconds(500);
  RawAppend raw(guarded, TokenFor(guarded, left));
  raw.Send(RawAppend::kPieceBytes);
  raw.AwaitPieces(1);
  absl::SleepFor(left);
  raw.Send(1);
  const absl::Status end = raw.Finish();
  INFO(end);
  CHECK(absl::IsUnauthenticated(end));
  CHECK(guarded.service.pieces.size() == 1);
}

// Every upload is there already.
struct Uploads : FakeService {
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override {
    if (!std::holds_alternative<const DirectAppend*>(request)) {
      return FakeService::Answer(request, call);
    }
    ++calls;
    return AppendResult{.epoch = 7, .tokens = calls};
  }
};

TEST_CASE("each message of a direct append comes in by the door") {
  const Quiet quiet;
  const Guarded guarded;
  Uploads uploads;
  const auto server = RpcServer::Start({.service = &uploads, .door = guarded.door.get()}).value();
  const auto stub = v1::Annulus::NewStub(MakeChannel(absl::StrCat("127.0.0.1:", server->port())));
  const auto begin = [&](grpc::ClientContext* context, const std::string& token) {
    context->AddMetadata(kAuthorizationKey, "Bearer " + token);
    return stub->AppendDirect(context);
  };
  const auto ask = [](const auto& stream) {
    v1::DirectReply reply;
    return stream->Write(v1::DirectAppend()) && stream->Read(&reply);
  };
  const absl::Duration left = absl::Milliseconds(500);
  grpc::ClientContext known;
  grpc::ClientContext expiring;
  const auto taken_back = begin(&known, "tenant");
  const auto expires = begin(&expiring, TokenFor(guarded, left));
  CHECK(ask(taken_back));
  CHECK(ask(taken_back));
  CHECK(ask(expires));
  guarded.Know(TokenEntry("other", "tenant"));
  REQUIRE(guarded.authenticator->Reload().ok());
  absl::SleepFor(left);
  CHECK_FALSE(ask(taken_back));
  CHECK_FALSE(ask(expires));
  CHECK(absl::IsUnauthenticated(FromGrpc(taken_back->Finish())));
  CHECK(absl::IsUnauthenticated(FromGrpc(expires->Finish())));
  CHECK(uploads.calls == 3);
}

}  // namespace
}  // namespace annulus
