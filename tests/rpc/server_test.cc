// The server against raw gRPC: hostile streams, bounds, health, reflection, shutdown.
#include "runtime/server/server.h"
#include "absl/time/clock.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "runtime/protocol/public/health.grpc.pb.h"
#include "tests/rpc/loopback.h"
#include "tests/rpc/raw_server.h"

namespace annulus {
namespace {

TEST_CASE("hostile streams are refused by name and the server lives on") {
  const RawServer raw;
  const auto refused = [&](const std::vector<v1::AttendPart>& parts, const char* text) {
    const grpc::Status status = raw.Attend(parts);
    CAPTURE(status.error_message());
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(status.error_message().find(text) != std::string::npos);
  };
  refused({}, "header: none; ");
  refused({Data(8)}, "header: none; ");
  refused({Header("f32", 1, 1, 8)}, "q: 0 bytes of data; expected 32");
  refused({Header("f32", 1, 1, 8), Data(33)}, "q: more bytes than declared; expected 32");
  refused({Header("f32", 1, 1, 8), Header("f32", 1, 1, 8)}, "header: given twice");
  refused({Header("f32", 1, 1, 8), v1::AttendPart()}, "data: 0 bytes");
  refused({Header("f99", 1, 1, 8), Data(32)}, "q.dtype");
  refused({Header("f32", -1, 1, 8), Data(32)}, "q.tokens: -1");
  refused({Header("f32", INT64_MAX, INT64_MAX, INT64_MAX), Data(32)}, "expected a size below");
  refused({Header("f32", int64_t{1} << 40, 8, 64), Data(32)}, "expected at most 1073741824");
  CHECK(raw.service.calls == 0);

  const grpc::Status too_large = raw.Attend({Header("f32", 1 << 20, 1, 8), Data(5 << 20)});
  CHECK(too_large.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(raw.Attend({Header("f32", 1, 1, 8), Data(32)}).ok());
  CHECK(raw.service.calls == 1);
}

TEST_CASE("a caller of another version of the protocol is refused in words, one of none served") {
  const RawServer raw;
  const auto status_of = [&](const char* version) {
    grpc::ClientContext context;
    if (version != nullptr) context.AddMetadata(kProtocolKey, version);
    v1::ClusterStatus reply;
    return raw.stub->Status(&context, v1::StatusRequest(), &reply);
  };
  CHECK(status_of(nullptr).ok());
  CHECK(status_of(kProtocolVersion).ok());
  CHECK(status_of("2").error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  CHECK(status_of("2").error_message() ==
        "protocol: 2 of the client; expected 1, which the service speaks: use a client of the "
        "service's release");

  // A client learns it as it connects, and where it has a stream open already.
  grpc::ClientContext check;
  check.AddMetadata(kProtocolKey, "2");
  grpc::health::v1::HealthCheckResponse health;
  CHECK(grpc::health::v1::Health::NewStub(raw.channel)
            ->Check(&check, grpc::health::v1::HealthCheckRequest(), &health)
            .error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext steps;
  steps.AddMetadata(kProtocolKey, "2");
  CHECK(raw.stub->Steps(&steps)->Finish().error_code() == grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_CASE("a tensor of another layout is refused by name") {
  const RawServer raw;
  v1::AttendPart header = Header("f32", 1, 1, 8);
  header.mutable_header()->mutable_q()->set_layout("HND");
  const grpc::Status status = raw.Attend({header, Data(32)});
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message() == "q.layout: HND; expected NHD, which is [tokens, heads, dim]");
}

TEST_CASE("bytes that are no message are refused and the server lives on") {
  const RawServer raw;
  const uint64_t seed = 5;
  Rng rng(seed);
  grpc::GenericStub generic(raw.channel);
  for (const char* method :
       {"/annulus.v1.Annulus/Attend", "/annulus.v1.Annulus/Append",
        "/annulus.v1.Annulus/CreateContext", "/annulus.v1.Annulus/NoSuchCall"}) {
    for (int round = 0; round < 100; ++round) {
      CAPTURE(seed, method, round);
      std::string bytes(rng.Below(64), '\0');
      for (char& c : bytes) c = static_cast<char>(rng.Next());
      const grpc::Slice slice(bytes);
      const grpc::ByteBuffer message(&slice, 1);
      grpc::ClientContext context;
      grpc::CompletionQueue queue;
      const auto call = generic.PrepareUnaryCall(&context, method, message, &queue);
      call->StartCall();
      grpc::ByteBuffer reply;
      grpc::Status status;
      call->Finish(&reply, &status, nullptr);
      void* tag = nullptr;
      bool ok = false;
      REQUIRE(queue.Next(&tag, &ok));
      CHECK_FALSE(status.ok());
    }
  }
  CHECK(raw.service.calls == 0);
  grpc::ClientContext context;
  v1::ClusterStatus reply;
  CHECK(raw.stub->Status(&context, v1::StatusRequest(), &reply).ok());
}

TEST_CASE("the bounds on calls and bytes are named when met") {
  RpcLimits limits;
  limits.transfers_max = 4;  // of each bound one peer has half
  limits.stream = {.request_bytes_max = 3000, .piece_bytes_max = 3000};
  limits.buffer_bytes_max = 8000;
  const RawServer raw(limits);
  grpc::ClientContext first_context;
  const auto first = raw.stub->Attend(&first_context);
  REQUIRE(first->Write(Header("f32", 1, 1, 500)));  // 2000 bytes stay reserved
  absl::SleepFor(absl::Milliseconds(200));

  const grpc::Status bytes = raw.Attend({Header("f32", 1, 1, 700), Data(2800)});
  CHECK(bytes.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(bytes.error_message().find("buffer_bytes_max: 8000; ") != std::string::npos);

  grpc::ClientContext second_context;
  const auto second = raw.stub->Attend(&second_context);
  REQUIRE(second->Write(Header("f32", 1, 1, 400)));
  absl::SleepFor(absl::Milliseconds(200));
  const grpc::Status calls = raw.Attend({Header("f32", 1, 1, 1), Data(4)});
  CHECK(calls.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(calls.error_message().find("transfers_max: 4; ") != std::string::npos);
  {
    grpc::ClientContext context;
    v1::ClusterStatus reply;
    CHECK(raw.stub->Status(&context, v1::StatusRequest(), &reply).ok());
  }

  first_context.TryCancel();
  second_context.TryCancel();
  CHECK(first->Finish().error_code() == grpc::StatusCode::CANCELLED);
  CHECK(second->Finish().error_code() == grpc::StatusCode::CANCELLED);
  // What the cancelled calls held is free again soon.
  grpc::Status later;
  for (int i = 0; i < 100 && (i == 0 || !later.ok()); ++i) {
    absl::SleepFor(absl::Milliseconds(10));
    later = raw.Attend({Header("f32", 1, 1, 750), Data(3000)});
  }
  CHECK(later.ok());
}

// Knows how many calls use a context.
class UsedService final : public FakeService {
 public:
  absl::StatusOr<CallSize> Check(const AppendRequest&, const CallContext&) override {
    return Use();
  }
  absl::StatusOr<CallSize> Check(const AttendRequest&, const CallContext&) override {
    return Use();
  }
  std::atomic<int> uses{0};
  std::atomic<int> begun{0};

 private:
  CallSize Use() {
    ++uses;
    ++begun;
    CallSize size;
    size.use = std::shared_ptr<const void>(this, [this](const void*) { --uses; });
    return size;
  }
};

TEST_CASE("a call uses its context from its header to its end") {
  UsedService service;
  std::vector<int> uses;  // as each piece and question is carried out
  service.before = [&](const char*, const CallContext&) {
    uses.push_back(service.uses);
    return absl::OkStatus();
  };
  const auto server = RpcServer::Start({.service = &service}).value();
  const auto client = Client::Connect({.endpoint = absl::StrCat("127.0.0.1:", server->port()),
                                       .upload = Upload::kRelay})
                          .value();
  const int64_t tokens = 3 << 20;  // several pieces
  const std::vector<float> rows(static_cast<size_t>(tokens));
  const auto view = TensorView::Contiguous(rows.data(), DType::kF32, tokens, 1, 1);
  REQUIRE(client->Append({.context = 1, .k = view, .v = view}).ok());
  CHECK(service.begun == 1);
  CHECK(uses.size() > 1);
  const auto q = TensorView::Contiguous(rows.data(), DType::kF32, 1, 1, 1);
  REQUIRE(client->Attend({.context = 1, .kv_len = 1, .q = q}).ok());
  CHECK(service.begun == 2);
  CHECK(std::count(uses.begin(), uses.end(), 1) == std::ssize(uses));
  const absl::Time begin = absl::Now();
  while (service.uses > 0 && absl::Now() < begin + absl::Seconds(10)) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  CHECK(service.uses == 0);
}

TEST_CASE("a cancelled call cancels its work") {
  RawServer raw;
  std::atomic<bool> started{false};
  std::atomic<bool> cancelled{false};
  raw.service.before = [&](const char*, const CallContext& call) {
    started = true;
    const absl::Status status = FakeService::WaitForCaller(call);
    cancelled = absl::IsCancelled(status);
    return status;
  };
  grpc::ClientContext context;
  std::thread canceller([&] {
    while (!started) absl::SleepFor(absl::Milliseconds(1));
    context.TryCancel();
  });
  v1::ClusterStatus reply;
  const grpc::Status status = raw.stub->Status(&context, v1::StatusRequest(), &reply);
  canceller.join();
  CHECK(status.error_code() == grpc::StatusCode::CANCELLED);
  raw.server->Shutdown(absl::Seconds(5));
  CHECK(cancelled);
}

TEST_CASE("shutdown waits for its grace, then cancels what is under way") {
  RawServer raw;
  std::atomic<bool> started{false};
  raw.service.before = [&](const char*, const CallContext& call) {
    started = true;
    return FakeService::WaitForCaller(call);
  };
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    v1::ClusterStatus reply;
    status = raw.stub->Status(&context, v1::StatusRequest(), &reply);
  });
  while (!started) absl::SleepFor(absl::Milliseconds(1));
  const absl::Time begin = absl::Now();
  raw.server->Shutdown(absl::Milliseconds(300));
  const absl::Duration took = absl::Now() - begin;
  caller.join();
  CHECK(took > absl::Milliseconds(250));
  CHECK(took < absl::Seconds(3));
  CHECK_FALSE(status.ok());
}

TEST_CASE("a call that the server's end cuts is UNAVAILABLE: its caller did not cancel it") {
  Loopback loopback;
  std::atomic<bool> started = false;
  loopback.service.before = [&](const char* name, const CallContext& call) {
    if (name != std::string("Attend")) return absl::OkStatus();
    started = true;
    return FakeService::WaitForCaller(call);
  };
  const std::vector<float> q = Ramp(8);
  AttendRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 1, 8);
  absl::Status ended;
  std::thread caller(
      [&] { ended = loopback.client->Attend(request, {.timeout = absl::Seconds(20)}).status(); });
  while (!started) absl::SleepFor(absl::Milliseconds(1));
  loopback.server->Shutdown(absl::ZeroDuration());
  caller.join();
  INFO(ended);
  CHECK(absl::IsUnavailable(ended));
}

TEST_CASE("health answers Check and Watch") {
  using grpc::health::v1::HealthCheckRequest;
  using grpc::health::v1::HealthCheckResponse;
  RawServer raw;
  const auto health = grpc::health::v1::Health::NewStub(raw.channel);
  const auto check = [&](const char* service, HealthCheckResponse* reply) {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service(service);
    return health->Check(&context, request, reply);
  };
  HealthCheckResponse reply;
  CHECK(check("", &reply).ok());
  CHECK(reply.status() == HealthCheckResponse::SERVING);
  CHECK(check("annulus.v1.Annulus", &reply).ok());
  CHECK(reply.status() == HealthCheckResponse::SERVING);
  CHECK(check("nobody", &reply).error_code() == grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("annulus.v1.Annulus");
  const auto watch = health->Watch(&context, request);
  REQUIRE(watch->Read(&reply));
  CHECK(reply.status() == HealthCheckResponse::SERVING);
  raw.server->SetServing(false);
  REQUIRE(watch->Read(&reply));
  CHECK(reply.status() == HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
  watch->Finish();
}

TEST_CASE("reflection lists the services, where it is asked for") {
  const bool asked_for = GENERATE(true, false);
  const RawServer raw({}, asked_for);
  grpc::GenericStub generic(raw.channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = generic.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  REQUIRE(wait());
  const grpc::Slice request("\x3a\x01*");  // ServerReflectionRequest{list_services: "*"}
  call->Write(grpc::ByteBuffer(&request, 1), nullptr);
  CHECK((wait() || !asked_for));
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  const bool answered = wait();
  CHECK(answered == asked_for);
  if (!answered) {
    grpc::Status status;
    call->Finish(&status, nullptr);
    CHECK(wait());
    CHECK(status.error_code() == grpc::StatusCode::UNIMPLEMENTED);
    return;
  }
  grpc::Slice slice;
  REQUIRE(reply.DumpToSingleSlice(&slice).ok());
  const std::string text(reinterpret_cast<const char*>(slice.begin()), slice.size());
  for (const char* name : {"annulus.v1.Annulus", "grpc.health.v1.Health"}) {
    CAPTURE(name);
    CHECK(text.find(name) != std::string::npos);
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

TEST_CASE("a taken port, a bad address and a bad limit are refused") {
  RawServer raw;
  const auto taken = RpcServer::Start({.listen = raw.endpoint(), .service = &raw.service});
  CHECK(absl::IsUnavailable(taken.status()));
  CHECK(taken.status().message().find(raw.endpoint()) != absl::string_view::npos);
  const auto start = [&](const char* listen) {
    return RpcServer::Start({.listen = listen, .service = &raw.service}).status();
  };
  for (const char* listen : {"", "nowhere", ":0", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1",
                             "127.0.0.1:1x", "::1:0", "unix:/tmp/a:0"}) {
    CAPTURE(listen);
    CHECK(absl::IsInvalidArgument(start(listen)));
  }
  for (const char* listen : {"256.0.0.1:0", "198.51.100.7:1"}) {
    CAPTURE(listen);
    CHECK(absl::IsUnavailable(start(listen)));
  }
  RpcLimits limits;
  limits.in_flight_max = 0;
  const auto bad = RpcServer::Start({.service = &raw.service, .limits = limits});
  CHECK(bad.status().message() == "in_flight_max: 0; expected 1 to 10000");
  limits = {};
  limits.stream.request_bytes_max = limits.buffer_bytes_max + 1;
  CHECK(RpcServer::Start({.service = &raw.service, .limits = limits}).status().message() ==
        "request_bytes_max is 2147483649; expected 1 to 1073741824, half of buffer_bytes_max");
}

}  // namespace
}  // namespace annulus
