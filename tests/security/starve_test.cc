// One caller cannot hold what others need: calls that wait, idle streams, slow uploads and headers
// that lie leave room for everybody else.
#include <grpcpp/client_context.h>

#include <sys/socket.h>

#include <deque>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"
#include "tests/data/data_cluster.h"
#include "tests/rpc/loopback.h"
#include "tests/rpc/raw_server.h"
#include "tests/runtime/inputs.h"
#include "tests/security/relay.h"

namespace annulus {
namespace {

using test::ConnectTo;
using test::DataCluster;
using test::PortIn;
using test::Relay;

// A call that a stranger begins and leaves.
template <typename Stream>
struct Begun {
  grpc::ClientContext context;
  std::unique_ptr<Stream> stream;
};
using BegunAttend = Begun<grpc::ClientReaderWriter<v1::AttendPart, v1::AttendReplyPart>>;
using BegunSteps = Begun<grpc::ClientReaderWriter<v1::StepBatch, v1::StepsReply>>;

template <typename Calls>
void Give(Calls& calls) {
  for (auto& call : calls) call.context.TryCancel();
}

bool Serves(const RawServer& raw) {
  return raw.Attend({Header("f32", 1, 1, 1), Data(4)}).ok();
}

template <typename Holds>
bool Soon(Holds holds, absl::Duration within = absl::Seconds(20)) {
  const absl::Time end = absl::Now() + within;
  while (!holds()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

TEST_CASE("headers that lie take no byte of the buffer") {
  DataCluster cluster({});
  ContextSpec spec;
  spec.heads = spec.kv_heads = 1;
  spec.head_dim = spec.v_head_dim = 64;
  spec.dtype = DType::kF32;
  const auto context = cluster.client().CreateContext(spec);
  REQUIRE(context.ok());
  const auto stub = v1::Annulus::NewStub(MakeChannel(cluster.endpoint()));
  const auto answer_to = [&](const v1::AttendPart& header) {
    grpc::ClientContext rpc;
    const auto stream = stub->Attend(&rpc);
    CHECK(stream->Write(header));
    v1::AttendReplyPart reply;
    CHECK_FALSE(stream->Read(&reply));  // nothing more is sent, and yet it is answered
    return FromGrpc(stream->Finish());
  };
  // 1 GiB, twice what would be all.
  v1::AttendPart header = Header("f32", 1 << 22, 1, 64);
  header.mutable_header()->set_context(context->id + 1000);
  for (int i = 0; i < 4; ++i) CHECK(absl::IsNotFound(answer_to(header)));
  header.mutable_header()->set_context(context->id);
  header.mutable_header()->mutable_q()->set_heads(2);
  header.mutable_header()->mutable_q()->set_tokens(1 << 20);
  const absl::Status shape = answer_to(header);
  CHECK(absl::IsInvalidArgument(shape));
  CHECK(absl::StartsWith(shape.message(), "shape of q: [1048576, 2, 64]; expected [tokens ≥ 1, 1"));
  header.mutable_header()->mutable_q()->set_heads(1);
  header.mutable_header()->set_layer(7);
  CHECK(absl::StartsWith(answer_to(header).message(), "layer: 7"));

  grpc::ClientContext rpc;
  v1::AppendResult result;
  const auto append = stub->Append(&rpc, &result);
  v1::AppendPart part;
  part.mutable_header()->set_context(context->id + 1000);
  *part.mutable_header()->mutable_k() = Header("f32", 1 << 14, 1, 64).header().q();
  part.mutable_header()->set_piece_tokens(1 << 14);
  append->Write(part);
  CHECK(absl::IsNotFound(FromGrpc(append->Finish())));
}

TEST_CASE("calls that wait for their client's bytes hold no slot, and one peer at most half") {
  const RawServer raw({.in_flight_max = 2,
                       .transfers_max = 8,
                       .buffer_bytes_max = int64_t{2} << 30,
                       .client = {.client_stall_max = absl::Seconds(20)}});
  const Relay relay("127.0.0.9", raw.endpoint());
  const auto stranger = v1::Annulus::NewStub(MakeChannel(relay.endpoint()));
  std::deque<BegunAttend> calls;
  for (int i = 0; i < 4; ++i) {  // half of all
    BegunAttend& call = calls.emplace_back();
    call.stream = stranger->Attend(&call.context);
    CHECK(call.stream->Write(Header("f32", 1 << 20, 1, 8)));
  }
  CHECK(Soon([&] {
    grpc::ClientContext rpc;
    const auto stream = stranger->Attend(&rpc);
    stream->WritesDone();
    v1::AttendReplyPart reply;
    CHECK_FALSE(stream->Read(&reply));
    const grpc::Status status = stream->Finish();
    return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
           absl::StrContains(status.error_message(), "transfers_max: 8; this caller has ");
  }));
  for (int i = 0; i < 20; ++i) CHECK(Serves(raw));
  Give(calls);
  REQUIRE(Soon([&] { return raw.server->Load().transfers == 0; }));  // those given up have left
  const Relay other("127.0.0.8", raw.endpoint());
  const auto later = v1::Annulus::NewStub(MakeChannel(other.endpoint()));
  // Silent calls make room for one another, of one peer too.
  std::deque<BegunAttend> silent;
  for (int i = 0; i < 64; ++i) {
    BegunAttend& call = silent.emplace_back();
    call.stream = later->Attend(&call.context);
  }
  for (int i = 0; i < 20; ++i) CHECK(Serves(raw));
  CHECK(Soon([&] {
    grpc::ClientContext context;
    const auto stream = later->Attend(&context);
    stream->Write(Header("f32", 1, 1, 1));
    stream->Write(Data(4));
    stream->WritesDone();
    v1::AttendReplyPart reply;
    return stream->Read(&reply);
  }));
  Give(silent);
}

TEST_CASE("a byte now and then is too slow: the call is cut, whatever it has announced") {
  constexpr absl::Duration kStallMax = absl::Milliseconds(400);
  const RawServer raw({.client = {.client_stall_max = kStallMax, .client_rate_min = 1 << 10}});
  grpc::ClientContext context;
  const auto stream = raw.stub->Attend(&context);
  REQUIRE(stream->Write(Header("f32", 4096, 8, 8)));
  const absl::Time begin = absl::Now();
  // Each well within the time that one wait may take.
  while (stream->Write(Data(1)) && absl::Now() - begin < absl::Seconds(20)) {
    absl::SleepFor(kStallMax / 4);
  }
  CHECK(absl::Now() - begin < absl::Seconds(10));
  CHECK(stream->Finish().error_code() == grpc::StatusCode::CANCELLED);

  // Who keeps the rate may take as long as it likes.
  grpc::ClientContext steady;
  const auto slow = raw.stub->Attend(&steady);
  REQUIRE(slow->Write(Header("f32", 256, 1, 64)));
  for (int i = 0; i < 16; ++i) {
    REQUIRE(slow->Write(Data(4 << 10)));
    absl::SleepFor(kStallMax / 4);
  }
  slow->WritesDone();
  v1::AttendReplyPart reply;
  CHECK(slow->Read(&reply));
  context.TryCancel();
}

TEST_CASE("idle streams of steps shut nobody out, and who loses one notices nothing") {
  Loopback loopback({.step_streams_max = 16});
  const std::vector<float> values = Ramp(16);
  StepRequest step;
  step.q = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  REQUIRE(loopback.client->Step({step})[0].ok());
  for (const char* from : {"127.0.0.9", "127.0.0.1"}) {
    const Relay relay(from, loopback.endpoint());
    const auto stranger = v1::Annulus::NewStub(MakeChannel(relay.endpoint()));
    std::deque<BegunSteps> idle;
    for (int i = 0; i < 256; ++i) {
      BegunSteps& call = idle.emplace_back();
      call.stream = stranger->Steps(&call.context);
    }
    // The streams arrive meanwhile.
    for (int i = 0; i < 100; ++i) {
      const StepResults results = loopback.client->Step({step});
      INFO(from << " step " << i << ": " << results[0].status());
      CHECK(results[0].ok());
      if (i % 10 == 0) absl::SleepFor(absl::Milliseconds(20));
    }
    const auto another = loopback.Connect(1 << 20);
    CHECK(another->Step({step})[0].ok());
    Give(idle);
  }
}

TEST_CASE("silent uploads to a data port keep nobody's KV out") {
  DataCluster cluster({.data_puts_max = 8});
  ContextSpec spec;
  spec.heads = spec.kv_heads = 1;
  spec.head_dim = spec.v_head_dim = 64;
  spec.dtype = DType::kF32;
  const auto context = cluster.client().CreateContext(spec);
  REQUIRE(context.ok());
  // From elsewhere, and even from where the client is.
  for (const char* from : {"127.0.0.9", "127.0.0.1"}) {
    const Relay relay(from, cluster.data(0).address());
    const auto stranger = v1::Data::NewStub(MakeChannel(relay.endpoint()));
    std::deque<Begun<grpc::ClientWriter<v1::PutPart>>> silent;
    v1::PutDone done;
    for (int i = 0; i < 600; ++i) {  // more than there are threads
      auto& call = silent.emplace_back();
      call.stream = stranger->Put(&call.context, &done);
    }
    Rng rng(3);
    for (int i = 0; i < 10; ++i) {
      const Tensor kv = test::RandomTensor(64, 1, 64, rng);
      AppendRequest append;
      append.context = context->id;
      append.start = cluster.client().Describe(context->id)->tokens[0];
      append.k = append.v = kv;
      const auto appended = cluster.client().Append(append);
      INFO(from << ": " << appended.status());
      CHECK(appended.ok());
    }
    Give(silent);
    for (auto& call : silent) call.stream->Finish();
  }
}

int Threads() {
  int count = 0;
  for ([[maybe_unused]] const auto& thread : std::filesystem::directory_iterator("/proc/self/task"))
    ++count;
  return count;
}

// A frame of HTTP/2.
std::string Frame(char type, char flags, uint32_t stream, const std::string& payload) {
  const auto bytes = static_cast<uint32_t>(payload.size());
  std::string frame;
  for (const int shift : {16, 8, 0}) frame.push_back(static_cast<char>(bytes >> shift));
  frame.push_back(type);
  frame.push_back(flags);
  for (const int shift : {24, 16, 8, 0}) frame.push_back(static_cast<char>(stream >> shift));
  return frame + payload;
}

// So many whole calls of one connection whose client takes no byte of an answer.
UniqueFd AskAndNeverRead(const std::string& from, const std::string& endpoint,
                         const std::string& path, int calls) {
  UniqueFd connection = ConnectTo(PortIn(endpoint), from);
  REQUIRE(connection.is_open());
  std::string headers;
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{":method", "POST"},
                                                        {":scheme", "http"},
                                                        {":path", path},
                                                        {":authority", "x"},
                                                        {"content-type", "application/grpc"},
                                                        {"te", "trailers"}}) {
    headers += std::string(1, '\0') + static_cast<char>(name.size()) + name +
               static_cast<char>(value.size()) + value;
  }
  const std::string no_window("\0\4\0\0\0\0", 6);
  std::string bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, no_window);
  for (int i = 0; i < calls; ++i) {
    const auto stream = static_cast<uint32_t>(2 * i + 1);
    bytes += Frame(1, 4, stream, headers) + Frame(0, 1, stream, std::string(5, '\0'));
  }
  send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  return connection;
}

TEST_CASE(
    "calls whose client takes no byte of the answer are cut, and few of one peer end at once") {
  const RawServer raw({.client = {.client_stall_max = absl::Seconds(2)}});
  const std::string call = GENERATE("grpc.health.v1.Health/Check", "annulus.v1.Annulus/Status");
  CAPTURE(call);
  const int before = Threads();
  const UniqueFd silent = AskAndNeverRead("127.0.0.9", raw.endpoint(), "/" + call, 900);
  absl::SleepFor(absl::Milliseconds(300));
  for (int i = 0; i < 20; ++i) CHECK(Soon([&] { return Serves(raw); }, absl::Seconds(5)));
  CHECK(Threads() - before < 300);
  CHECK(Soon([&] { return Threads() - before < 32; }));
  // The same of uploads.
  DataCluster cluster({});
  const UniqueFd upload =
      AskAndNeverRead("127.0.0.9", cluster.data(0).address(), "/annulus.v1.Data/Put", 900);
  ContextSpec spec;
  spec.heads = spec.kv_heads = 1;
  spec.head_dim = spec.v_head_dim = 64;
  const auto context = cluster.client().CreateContext(spec);
  REQUIRE(context.ok());
  Rng rng(3);
  const Tensor kv = test::RandomTensor(64, 1, 64, rng);
  AppendRequest append;
  append.context = context->id;
  append.k = append.v = kv;
  const auto appended = cluster.client().Append(append);
  INFO(appended.status());
  CHECK(appended.ok());
}

TEST_CASE("compressed messages are refused before they inflate") {
  const RawServer raw;
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::ClusterStatus reply;
  const grpc::Status status = raw.stub->Status(&context, {}, &reply);
  CHECK(status.error_code() == grpc::StatusCode::UNIMPLEMENTED);
}

TEST_CASE("short calls of one peer leave room for those of others") {
  RawServer raw({.short_calls_max = 4});
  std::atomic<int> inside{0};
  std::atomic<bool> wait{true};
  raw.service.before = [&](const char*, const CallContext&) {
    if (++inside > 2) return absl::OkStatus();
    while (wait) absl::SleepFor(absl::Milliseconds(1));
    return absl::OkStatus();
  };
  const Relay relay("127.0.0.9", raw.endpoint());
  const auto status_of = [](const std::string& endpoint) {
    grpc::ClientContext context;
    v1::ClusterStatus reply;
    return v1::Annulus::NewStub(MakeChannel(endpoint))->Status(&context, {}, &reply);
  };
  std::vector<std::thread> threads;
  std::atomic<int> refused{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const grpc::Status status = status_of(relay.endpoint());
      refused += status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
                 absl::StrContains(status.error_message(), "short_calls_max: 4; ");
    });
  }
  CHECK(Soon([&] { return refused == 6 && inside == 2; }));
  CHECK(status_of(raw.endpoint()).ok());
  wait = false;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace annulus
