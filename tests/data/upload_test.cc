// Direct appends end to end: what the client uploads is what the service answers from.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/client/put.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/data.grpc.pb.h"
#include "tests/catch.h"
#include "tests/data/data_cluster.h"
#include "tests/reliability.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::DataCluster;
using test::LayerKv;

ContextSpec SmallSpec(Placement placement = Placement::kTokens) {
  ContextSpec spec;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 64;
  spec.v_head_dim = 32;
  spec.dtype = DType::kF32;
  spec.placement = placement;
  spec.partition.unit_blocks = 1;
  return spec;
}

double ErrorOf(Client& client, const ContextSpec& spec, ContextId context, const LayerKv& kv,
               int64_t kv_len, Rng& rng) {
  const Tensor q = test::RandomTensor(1, spec.heads, spec.head_dim, rng);
  AttendRequest request;
  request.context = context;
  request.kv_len = kv_len;
  request.q_start = kv_len - 1;
  request.q = q;
  const auto answer = client.Attend(request);
  INFO(answer.status());
  REQUIRE(answer.ok());
  return test::WorstError(answer->out, answer->lse, test::Oracle(spec, kv, q, kv_len, "causal"));
}

int64_t KvBytes(const ContextSpec& spec, int64_t tokens) {
  const int dims = spec.head_dim + (spec.v_is_k_prefix ? 0 : spec.v_head_dim);
  return tokens * spec.kv_heads * dims * static_cast<int64_t>(SizeOf(spec.dtype));
}

// The coordinator's side of an upload by hand: a stream whose first piece is granted.
struct RawUpload {
  RawUpload(const DataCluster& cluster, ContextId context, int64_t tokens)
      : stub(v1::Annulus::NewStub(MakeChannel(cluster.endpoint()))),
        stream(stub->AppendDirect(&rpc)) {
    v1::DirectAppend message;
    message.set_context(context);
    message.set_tokens(tokens);
    v1::DirectReply reply;
    REQUIRE(stream->Write(message));
    REQUIRE(stream->Read(&reply));
    REQUIRE(reply.has_grant());
    grant = reply.grant();
  }

  absl::Status Put(const NextBytes& next) const {
    grpc::ClientContext put;
    return PutUpload(MakeChannel(grant.addresses(0)), &put, grant.id(), grant.secret(), next);
  }

  grpc::ClientContext rpc;
  std::unique_ptr<v1::Annulus::Stub> stub;
  std::unique_ptr<grpc::ClientReaderWriter<v1::DirectAppend, v1::DirectReply>> stream;
  v1::AppendGrant grant;
};

}  // namespace

TEST_CASE("uploads go to the workers alone and are what answers come from, in every placement") {
  const uint64_t seed = GENERATE(1, 2, 3);
  const Placement placement = GENERATE(Placement::kTokens, Placement::kHeads, Placement::kMesh);
  Rng rng(seed);
  const int workers = 1 + static_cast<int>(rng.Next() % 4);
  CAPTURE(seed, workers, static_cast<int>(placement));
  DataCluster cluster({.workers = workers});
  ContextSpec spec = SmallSpec(placement);
  spec.layers = 2;
  if (seed == 2) spec.dtype = DType::kBF16;
  if (seed == 3) {
    spec.kv_heads = 1;
    spec.v_is_k_prefix = true;
  }
  const ContextInfo context = cluster.client().CreateContext(spec).value();
  const LayerKv kv(spec, 500, rng);
  int64_t tokens = 0;
  for (const int64_t step : {int64_t{200}, int64_t{1}, int64_t{99}, int64_t{200}}) {
    const auto appended = cluster.client().Append(kv.Append(context.id, 1, tokens, step));
    INFO(appended.status());
    REQUIRE(appended.ok());
    tokens += step;
    CHECK(appended->tokens == tokens);
  }
  AttendRequest request;
  const Tensor q = test::RandomTensor(3, spec.heads, spec.head_dim, rng);
  request.context = context.id;
  request.layer = 1;
  request.kv_len = tokens;
  request.q_start = tokens - 3;
  request.q = q;
  const auto answer = cluster.client().Attend(request);
  REQUIRE(answer.ok());
  CHECK(test::WorstError(answer->out, answer->lse, test::Oracle(spec, kv, q, tokens, "causal")) <
        (spec.dtype == DType::kF32 ? 1e-4 : 1e-2));
  // Where there are more workers than heads some hold the same ones.
  CHECK(static_cast<int64_t>(cluster.bytes_uploaded()) >= KvBytes(spec, tokens));
  if (placement == Placement::kTokens) {
    CHECK(static_cast<int64_t>(cluster.bytes_uploaded()) == KvBytes(spec, tokens));
  }
  for (int i = 0; i < workers; ++i) CHECK(cluster.grants(i).upload_bytes() == 0);
}

TEST_CASE("an upload of several pieces, from strided views of another type") {
  DataCluster cluster({.workers = 3});
  ContextSpec spec = SmallSpec();
  spec.kv_heads = 4;
  spec.head_dim = spec.v_head_dim = 128;
  spec.dtype = DType::kF16;
  Rng rng(5);
  const int64_t tokens = 9000;  // more than two pieces of f32
  const LayerKv kv(spec, tokens, rng);
  Tensor wide(DType::kF32, tokens, 5, 128);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int h = 0; h < 4; ++h) {
      std::memcpy(wide.f32() + (t * 5 + h) * 128, kv.k.view().Row(t, h), 128 * sizeof(float));
    }
  }
  AppendRequest request = kv.Append(0, 0, 0, tokens);
  request.context = cluster.client().CreateContext(spec)->id;
  request.k = wide;
  request.k.heads = 4;
  std::vector<int64_t> progress;
  const auto appended = cluster.client().Append(
      request, {.progress = [&](int64_t done, int64_t) { progress.push_back(done); }});
  INFO(appended.status());
  REQUIRE(appended.ok());
  CHECK(appended->tokens == tokens);
  CHECK(progress.size() == 2);
  CHECK(static_cast<int64_t>(cluster.bytes_uploaded()) == KvBytes(spec, tokens));
  CHECK(ErrorOf(cluster.client(), spec, request.context, kv, tokens, rng) < 1e-4);
}

TEST_CASE("an append is repeated under its key: nothing is uploaded again") {
  DataCluster cluster({.workers = 2});
  const ContextSpec spec = SmallSpec();
  Rng rng(6);
  const LayerKv kv(spec, 100, rng);
  AppendRequest request = kv.Append(cluster.client().CreateContext(spec)->id, 0, 0, 100);
  request.key = {.client = 5, .sequence = 9};
  REQUIRE(cluster.client().Append(request).ok());
  const uint64_t uploaded = cluster.bytes_uploaded();
  const auto again = cluster.client().Append(request);
  REQUIRE(again.ok());
  CHECK(again->tokens == 100);
  CHECK(cluster.bytes_uploaded() == uploaded);
}

TEST_CASE("a data port that cannot be reached is named with the way out, which works") {
  const std::string address = GENERATE("127.0.0.1:1", "-", "nonsense");
  DataCluster cluster({.workers = 2, .data_address = address, .retry = {.attempts_max = 1}});
  const ContextSpec spec = SmallSpec();
  Rng rng(7);
  const LayerKv kv(spec, 300, rng);
  const AppendRequest request = kv.Append(cluster.client().CreateContext(spec)->id, 0, 0, 300);
  const absl::Status refused = cluster.client().Append(request).status();
  INFO(refused);
  CHECK_FALSE(refused.ok());
  if (address == "-") {
    CHECK(absl::IsFailedPrecondition(refused));
    CHECK(absl::StrContains(refused.message(), "worker 2"));
  } else {
    CHECK(absl::StrContains(refused.message(), address));
  }
  if (address != "nonsense") CHECK(absl::StrContains(refused.message(), "ClientOptions::upload"));
  const auto relay = cluster.Connect(Upload::kRelay);
  REQUIRE(relay->Append(request).ok());
  CHECK(ErrorOf(*relay, spec, request.context, kv, 300, rng) < 1e-4);
}

// A data port where others need the place of every upload.
class Busy final : public v1::Data::Service {
 public:
  std::atomic<int> ended = 0;

 private:
  grpc::Status Put(grpc::ServerContext* context, grpc::ServerReader<v1::PutPart>* stream,
                   v1::PutDone*) override {
    v1::PutPart part;
    stream->Read(&part);
    ++ended;
    context->TryCancel();
    return grpc::Status::CANCELLED;
  }
};

TEST_CASE("an upload that loses its place before it begins is tried again, not waited for") {
  Busy busy;
  int port = 0;
  const auto server = grpc::ServerBuilder()
                          .RegisterService(&busy)
                          .AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port)
                          .BuildAndStart();
  DataCluster cluster({.data_address = absl::StrCat("127.0.0.1:", port)});
  const ContextSpec spec = SmallSpec();
  Rng rng(8);
  const LayerKv kv(spec, 10, rng);
  const ContextId context = cluster.client().CreateContext(spec)->id;
  const absl::Status refused = cluster.client().Append(kv.Append(context, 0, 0, 10)).status();
  INFO(refused);
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(RetryAfter(refused).has_value());
  CHECK(busy.ended == RetryOptions().attempts_max);
}

TEST_CASE("what the workers refuse comes back as it is, and nothing of it stays") {
  DataCluster cluster({.workers = 2, .kv_bytes_limit = 1 << 20});
  const ContextSpec spec = SmallSpec();
  Rng rng(8);
  const LayerKv kv(spec, 4000, rng);
  const ContextId context = cluster.client().CreateContext(spec)->id;
  const absl::Status full = cluster.client().Append(kv.Append(context, 0, 0, 4000)).status();
  CHECK(absl::IsResourceExhausted(full));
  CHECK(absl::StrContains(full.message(), "kv_bytes_limit"));
  CHECK(cluster.client().Describe(context)->tokens[0] == 0);
  LayerKv spoilt(spec, 10, rng);
  spoilt.k.f32()[17] = std::numeric_limits<float>::infinity();
  const absl::Status bad = cluster.client().Append(spoilt.Append(context, 0, 0, 10)).status();
  CHECK(absl::IsInvalidArgument(bad));
  CHECK(absl::StrContains(bad.message(), "k[0, 0, 17]"));
  const auto appended = cluster.client().Append(kv.Append(context, 0, 0, 1000));
  INFO(appended.status());
  REQUIRE(appended.ok());
  CHECK(ErrorOf(cluster.client(), spec, context, kv, 1000, rng) < 1e-4);
}

TEST_CASE("a client that vanishes in the middle frees all it held within a second") {
  DataCluster cluster({.workers = 1});
  const ContextSpec spec = SmallSpec();
  Rng rng(9);
  const LayerKv kv(spec, 1000, rng);
  const ContextId context = cluster.client().CreateContext(spec)->id;
  absl::Status put;
  std::atomic<bool> half = false;
  std::thread uploader;
  absl::Time vanished;
  {
    RawUpload upload(cluster, context, 1000);
    uploader = std::thread([&, grant = upload.grant] {
      grpc::ClientContext rpc;
      put = PutUpload(MakeChannel(grant.addresses(0)), &rpc, grant.id(), grant.secret(), [&] {
        if (half) absl::SleepFor(absl::Seconds(2));  // stalls
        half = true;
        return grpc::Slice(std::string(1000, 'x'));
      });
    });
    while (!half) absl::SleepFor(absl::Milliseconds(1));
    while (cluster.grants(0).upload_bytes() == 0) absl::SleepFor(absl::Milliseconds(1));
    // The layer is taken until the upload is over.
    DataCluster* const c = &cluster;
    const auto relay = c->Connect(Upload::kRelay, {.attempts_max = 1});
    CHECK(absl::IsUnavailable(relay->Append(kv.Append(context, 0, 0, 1000)).status()));
    vanished = absl::Now();
    upload.rpc.TryCancel();
    (void)upload.stream->Finish();
  }
  while (cluster.grants(0).upload_bytes() != 0) absl::SleepFor(absl::Milliseconds(1));
  const absl::Duration freed = absl::Now() - vanished;
  test::Tell({7, "a client vanishes in the middle of an upload", "1 upload", "freed <= 1 s",
              absl::FormatDuration(freed), freed < absl::Seconds(1)});
  CHECK(freed < absl::Seconds(1));
  CHECK(cluster.client().Append(kv.Append(context, 0, 0, 1000)).ok());
  CHECK(absl::Now() - vanished < absl::Seconds(2));
  uploader.join();
  CHECK_FALSE(put.ok());
  CHECK(ErrorOf(cluster.client(), spec, context, kv, 1000, rng) < 1e-4);
}

TEST_CASE("hostile uploads are refused and leave nothing behind") {
  DataCluster cluster({.workers = 1});
  const ContextSpec spec = SmallSpec();
  const auto fresh = [&] { return cluster.client().CreateContext(spec)->id; };
  const auto bytes = static_cast<size_t>(KvBytes(spec, 10));
  const auto in_one = [](std::string text) {
    return [text, done = false]() mutable {
      return std::exchange(done, true) ? grpc::Slice() : grpc::Slice(text);
    };
  };
  // A context's value that is not finite, too few bytes and too many.
  const std::vector<std::string> uploads = {std::string(bytes, '\xff'), std::string(bytes - 4, 'x'),
                                            std::string(bytes + 4, 'x')};
  for (const std::string& text : uploads) {
    RawUpload upload(cluster, fresh(), 10);
    CHECK(absl::IsInvalidArgument(upload.Put(in_one(text))));
    CHECK(absl::IsPermissionDenied(upload.Put(in_one(std::string(bytes, 'x')))));  // it is used
    upload.rpc.TryCancel();
    (void)upload.stream->Finish();
  }
  {
    RawUpload upload(cluster, fresh(), 10);
    upload.grant.set_secret("guess");
    CHECK(absl::IsPermissionDenied(upload.Put(in_one(std::string(bytes, 'x')))));
    upload.rpc.TryCancel();
    (void)upload.stream->Finish();
  }
  // Later messages that are not bytes alone.
  v1::PutPart empty;
  empty.set_data("");
  v1::PutPart header;
  header.mutable_header()->set_grant(1);
  v1::PutPart more;
  more.set_data(std::string(bytes, 'x'));
  more.GetReflection()->MutableUnknownFields(&more)->AddVarint(9, 1);
  for (const v1::PutPart& part : {empty, header, more}) {
    RawUpload upload(cluster, fresh(), 10);
    grpc::ClientContext rpc;
    v1::PutDone done;
    const auto stub = v1::Data::NewStub(MakeChannel(upload.grant.addresses(0)));
    const auto stream = stub->Put(&rpc, &done);
    v1::PutPart first;
    first.mutable_header()->set_grant(upload.grant.id());
    first.mutable_header()->set_secret(upload.grant.secret());
    CHECK(stream->Write(first));
    stream->Write(part);
    CHECK(stream->Finish().error_message() == "data: none; expected some in every later message");
    upload.rpc.TryCancel();
    (void)upload.stream->Finish();
  }
  CHECK(cluster.grants(0).upload_bytes() == 0);
  const auto contexts = cluster.client().List();
  REQUIRE(contexts.ok());
  CHECK(contexts->size() == 7);
  for (const ContextInfo& info : *contexts) CHECK(info.tokens[0] == 0);

  // No header, no data, twice a header.
  const auto stub = v1::Data::NewStub(MakeChannel(cluster.data(0).address()));
  for (const int kind : {0, 1, 2}) {
    grpc::ClientContext rpc;
    v1::PutDone result;
    const auto stream = stub->Put(&rpc, &result);
    v1::PutPart part;
    if (kind == 1) part.set_data("x");
    if (kind == 2) part.mutable_header()->set_grant(12345);
    stream->Write(part);
    stream->WritesDone();
    CHECK_FALSE(stream->Finish().ok());
  }
}

TEST_CASE("many clients upload to many contexts at once, and one layer takes one at a time") {
  DataCluster cluster({.workers = 2, .upload_bytes_max = 8 << 20});
  const ContextSpec spec = SmallSpec();
  Rng rng(10);
  const LayerKv kv(spec, 2000, rng);
  std::vector<std::thread> threads;
  std::vector<ContextId> contexts;
  std::atomic<int> failures = 0;
  for (int i = 0; i < 6; ++i) contexts.push_back(cluster.client().CreateContext(spec)->id);
  for (const ContextId context : contexts) {
    threads.emplace_back([&, context] {
      for (int64_t at = 0; at < 2000; at += 500) {
        failures += !cluster.client().Append(kv.Append(context, 0, at, 500)).ok();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == 0);
  for (const ContextId context : contexts) {
    CHECK(ErrorOf(cluster.client(), spec, context, kv, 2000, rng) < 1e-4);
  }
}

}  // namespace annulus
