// The server's door: who is let in, what each role may do, and tokens that change while clients
// call.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/health.grpc.pb.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/server/join.h"
#include "tests/rpc/guarded.h"
#include "tests/rpc/loopback.h"
#include "tests/rpc/quiet.h"

namespace annulus {
namespace {

using test::Quiet;

StepRequest StepOf(const std::vector<float>& values, bool appends) {
  StepRequest step;
  step.q = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  if (appends) {
    step.k = TensorView::Contiguous(values.data(), DType::kF32, 1, 1, 8);
    step.v = step.k;
  }
  return step;
}

// At the door; what the fake service makes of calls that it knows nothing of does not count.
bool Refused(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
}

// What becomes of each call, by its name.
std::map<std::string, absl::Status> AllCalls(Client& client) {
  const std::vector<float> values = Ramp(64);
  const ContextSpec spec{.heads = 2, .kv_heads = 1, .head_dim = 8, .v_head_dim = 8};
  AppendRequest append;
  append.k = TensorView::Contiguous(values.data(), DType::kF32, 1, 1, 8);
  append.v = append.k;
  AttendRequest attend;
  attend.q = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  attend.kv_len = 1;
  CompressRequest compress;
  compress.kv_len = 1;
  compress.q = attend.q;
  compress.rule.keep = 1;
  return {{"CreateContext", client.CreateContext(spec).status()},
          {"Append", client.Append(append).status()},
          {"Attend", client.Attend(attend).status()},
          {"Select", client.Select({.kv_len = 1, .q = attend.q, .pattern = "quest(64)"}).status()},
          {"Compress", client.Compress(compress).status()},
          {"Step", client.Step({StepOf(values, false)})[0].status()},
          {"Step that appends", client.Step({StepOf(values, true)})[0].status()},
          {"Fork", client.Fork({.context = 1, .tokens = {}}).status()},
          {"Truncate", client.Truncate({.context = 1}).status()},
          {"Release", client.Release(1)},
          {"KeepAlive", client.KeepAlive({1})[0]},
          {"Describe", client.Describe(1).status()},
          {"List", client.List().status()},
          {"Status", client.Status().status()}};
}

TEST_CASE("each role may make its calls and no others") {
  const Quiet quiet;
  const Guarded guarded;
  const std::set<std::string> reads = {"Attend", "Select", "Step", "Describe", "List", "Status"};
  for (const char* role : {"admin", "tenant", "reader", "worker"}) {
    const auto client = guarded.Connect(role);
    REQUIRE(client.ok());
    for (const auto& [call, status] : AllCalls(**client)) {
      INFO(role << " " << call << " " << status);
      const bool may = absl::string_view(role) == "admin" || absl::string_view(role) == "tenant" ||
                       (absl::string_view(role) == "reader" && reads.count(call) != 0);
      CHECK(Refused(status) == !may);
      if (!may) CHECK(absl::StrContains(status.message(), absl::StrCat("role: ", role)));
    }
    const auto join =
        JoinClient::Make(guarded.endpoint(), {.token_file = guarded.folder / "token"}).value();
    const bool joins = absl::string_view(role) == "admin" || absl::string_view(role) == "worker";
    const absl::StatusOr<Admittance> got = join->Join("", absl::Now() + absl::Seconds(5));
    INFO(got.status());
    CHECK(got.ok() == joins);
    CHECK(absl::IsPermissionDenied(got.status()) == !joins);
  }
  CHECK(guarded.door->counts().unauthenticated == 0);
  CHECK(guarded.door->counts().denied > 0);
}

TEST_CASE("the service hears who calls") {
  Guarded guarded;
  std::map<std::string, Caller> callers;
  guarded.service.before = [&](const char* call, const CallContext& context) {
    callers[call] = context.caller;
    return absl::OkStatus();
  };
  const auto client = guarded.Connect("tenant").value();
  AllCalls(*client);
  CHECK(callers.size() >= 9);
  for (const auto& [call, caller] : callers) {
    INFO(call);
    CHECK(caller.name == "n-tenant");
    CHECK(caller.tenant == "t-tenant");
    CHECK(caller.role == Role::kTenant);
  }
  const std::string signed_token = guarded.SignedToken(absl::Now() + absl::Minutes(5), "reader");
  REQUIRE(guarded.Connect(signed_token).value()->Status().ok());
  CHECK(callers["Status"].tenant == "s");
  CHECK(callers["Status"].role == Role::kReader);
}

// A raw call of Status with some metadata.
grpc::Status RawStatus(const std::string& endpoint,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  const auto stub = v1::Annulus::NewStub(MakeChannel(endpoint));
  grpc::ClientContext context;
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  v1::ClusterStatus reply;
  return stub->Status(&context, v1::StatusRequest(), &reply);
}

TEST_CASE("who is not known is refused in the same words, and nothing reaches the service") {
  const Quiet quiet;
  const Guarded guarded;
  const std::string key = kAuthorizationKey;
  CHECK(RawStatus(guarded.endpoint(), {{key, "Bearer tenant"}}).ok());
  CHECK(RawStatus(guarded.endpoint(), {{key, "bearer tenant"}}).ok());
  const int calls = guarded.service.calls;
  const std::string expired = guarded.SignedToken(absl::Now() - absl::Minutes(1));
  const std::string king = guarded.SignedToken(absl::Now() + absl::Minutes(1), "king");
  const std::string foreign = test::Signer::EdDsa().Sign(
      R"({"alg":"EdDSA"})", R"({"iss":"i","aud":"a","sub":"s","exp":4000000000})");
  const std::vector<std::vector<std::pair<std::string, std::string>>> cases = {
      {},
      {{key, ""}},
      {{key, "Bearer "}},
      {{key, "Bearer tenan"}},
      {{key, "Bearer tenant "}},
      {{key, "Basic tenant"}},
      {{key, "tenant"}},
      {{key, "Bearer tenant"}, {key, "Bearer tenant"}},
      {{key, "Bearer " + expired}},
      {{key, "Bearer " + king}},
      {{key, "Bearer " + foreign}},
      {{key, "Bearer " + std::string(7000, 'x')}},
  };
  std::set<std::string> words;
  for (const auto& metadata : cases) {
    const grpc::Status status = RawStatus(guarded.endpoint(), metadata);
    CHECK(status.error_code() == grpc::StatusCode::UNAUTHENTICATED);
    words.insert(status.error_message());
  }
  CHECK(words.size() == 1);
  CHECK(guarded.service.calls == calls);
  CHECK(guarded.door->counts().unauthenticated == cases.size());

  // A client with a bad token is told as it connects, and not after its patience.
  const absl::Time begin = absl::Now();
  const auto client = guarded.Connect("nobody");
  CHECK(absl::IsUnauthenticated(client.status()));
  CHECK(absl::Now() - begin < absl::Seconds(9));
  const auto missing = Client::Connect({.endpoint = guarded.endpoint(), .token_file = "/no/such"});
  CHECK(absl::IsInvalidArgument(missing.status()));
  CHECK(absl::StartsWith(missing.status().message(), "token_file: "));
}

TEST_CASE("everybody may ask for health, and nobody for reflection where callers are asked") {
  const Quiet quiet;
  const auto health = [](const std::string& endpoint) {
    const auto stub = grpc::health::v1::Health::NewStub(MakeChannel(endpoint));
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckResponse reply;
    return stub->Check(&context, grpc::health::v1::HealthCheckRequest(), &reply);
  };
  const auto reflection = [](const std::string& endpoint) {
    grpc::GenericStub stub(MakeChannel(endpoint));
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(
        &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
    void* tag = nullptr;
    bool ok = false;
    call->StartCall(nullptr);
    queue.Next(&tag, &ok);
    call->WritesDone(nullptr);
    queue.Next(&tag, &ok);
    grpc::Status status;
    call->Finish(&status, nullptr);
    queue.Next(&tag, &ok);
    return status.error_code();
  };
  const Loopback open;
  CHECK(health(open.endpoint()).ok());
  const Guarded guarded;  // which has reflection, where nobody is asked
  CHECK(health(guarded.endpoint()).ok());
  CHECK(reflection(guarded.endpoint()) == grpc::StatusCode::UNIMPLEMENTED);
}

TEST_CASE("a secret is changed under a client without a call that fails") {
  const Quiet quiet;
  const Guarded guarded;
  const auto client = guarded.Connect("tenant").value();
  const std::vector<float> values = Ramp(64);
  const auto all_good = [&] {
    for (const auto& [call, status] : AllCalls(*client)) {
      INFO(call << " " << status);
      CHECK_FALSE(Refused(status));
    }
  };
  all_good();
  // The worst order: the service does not know the old one any more when the client still has it.
  for (const std::string token : {"second", "third"}) {
    guarded.folder.Write("token", token);
    guarded.Know(TokenEntry(token, "tenant"));
    REQUIRE(guarded.authenticator->Reload().ok());
    all_good();
  }
  // A token that is not replaced is refused, on streams that are open too.
  guarded.Know(TokenEntry("fourth", "tenant"));
  REQUIRE(guarded.authenticator->Reload().ok());
  for (const auto& [call, status] : AllCalls(*client)) {
    INFO(call << " " << status);
    CHECK(absl::IsUnauthenticated(status));
  }
}

// A raw stream of steps with a token.
struct RawSteps {
  RawSteps(const Guarded& guarded, const std::string& token)
      : stub(v1::Annulus::NewStub(MakeChannel(guarded.endpoint()))) {
    context.AddMetadata(kAuthorizationKey, "Bearer " + token);
    stream = stub->Steps(&context);
  }
  bool Ask() {
    const std::vector<float> values = Ramp(64);
    v1::StepBatch batch;
    ToProto(std::vector<StepRequest>{StepOf(values, false)}, &batch);
    v1::StepsReply reply;
    return stream->Write(batch) && stream->Read(&reply);
  }

  grpc::ClientContext context;
  std::unique_ptr<v1::Annulus::Stub> stub;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepBatch, v1::StepsReply>> stream;
};

// The token's leeway counts: it is good for `left` from now on.
std::string TokenFor(const Guarded& guarded, absl::Duration left) {
  return guarded.SignedToken(absl::Now() - kJwtLeeway + left);
}

TEST_CASE("a stream of steps ends with its token, and says how to go on") {
  const Quiet quiet;
  RpcLimits limits;
  limits.client.client_stall_max = absl::Seconds(60);  // nobody looks at idle streams in this test
  const Guarded guarded(limits);
  const absl::Duration left = absl::Seconds(2);
  RawSteps raw(guarded, TokenFor(guarded, left));
  CHECK(raw.Ask());
  absl::SleepFor(left);
  CHECK_FALSE(raw.Ask());
  const absl::Status end = FromGrpc(raw.stream->Finish());
  CHECK(absl::IsUnauthenticated(end));
  CHECK(absl::StrContains(end.message(), "opened again with a fresh token"));
  CHECK(RetryAfter(end).has_value());
}

TEST_CASE("an idle stream of steps is closed when its token expires") {
  const Quiet quiet;
  RpcLimits limits;
  limits.client.client_stall_max = absl::Milliseconds(100);
  const Guarded guarded(limits);
  RawSteps raw(guarded, TokenFor(guarded, absl::Seconds(1)));
  CHECK(raw.Ask());
  v1::StepsReply reply;
  CHECK_FALSE(raw.stream->Read(&reply));  // as soon as the stream ends
  CHECK(raw.stream->Finish().error_code() == grpc::StatusCode::CANCELLED);
}

TEST_CASE("a client reopens a stream whose token has expired with the file's new one") {
  const Quiet quiet;
  const Guarded guarded;
  const absl::Duration left = absl::Seconds(2);
  const auto client = guarded.Connect(TokenFor(guarded, left)).value();
  const std::vector<float> values = Ramp(64);
  CHECK(client->Step({StepOf(values, false)})[0].ok());
  guarded.folder.Write("token", TokenFor(guarded, left * 2));
  absl::SleepFor(left);
  const absl::Status status = client->Step({StepOf(values, false)})[0].status();
  INFO(status);
  CHECK(status.ok());
  absl::SleepFor(left);
  CHECK(absl::IsUnauthenticated(client->Step({StepOf(values, false)})[0].status()));
}

}  // namespace
}  // namespace annulus
