// Steps over their stream: what the client sends arrives, what fails alone fails alone, and the
// stream bears cancellation, deadlines, restarts and clients that break its rules.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <thread>

#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/step_batch.h"
#include "tests/rpc/loopback.h"

namespace annulus {
namespace {

// A step that attends `tokens` rows of 2 heads of 8.
StepRequest Query(const std::vector<float>& q, int64_t tokens) {
  StepRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, tokens, 2, 8);
  return request;
}

// Each for a layer of its own.
std::vector<StepRequest> Apart(std::vector<StepRequest> requests) {
  for (size_t i = 0; i < requests.size(); ++i) requests[i].layer = static_cast<int>(i);
  return requests;
}

TEST_CASE("a step's append and attend arrive, and its answer comes back") {
  Loopback loopback;
  const std::vector<float> values = Ramp(4096);
  StepRequest request = Query(values, 3);
  request.context = 0xfedcba9876543210u;
  request.layer = 5;
  request.k = TensorView::Contiguous(values.data() + 64, DType::kF32, 3, 1, 8);
  request.v = TensorView::Contiguous(values.data() + 512, DType::kF32, 3, 2, 8).Heads(1, 1);
  request.pattern = "causal & window(9)";
  request.scale = 0.5f;
  const StepResults results = loopback.client->Step({request});
  REQUIRE(results.size() == 1);
  INFO(results[0].status());
  REQUIRE(results[0].ok());
  CHECK(results[0]->tokens == 3);
  CHECK(results[0]->epoch == 9);
  REQUIRE(results[0]->out.tokens() == 3);
  CHECK(results[0]->out.f32()[16 * 2 + 1] == values[17]);  // row 1, head 0, c 1
  CHECK(results[0]->lse.f32()[3] == Approx(1.01));
  CHECK(loopback.service.k_bytes == BytesOf(request.k));
  CHECK(loopback.service.v_bytes == BytesOf(request.v));
  CHECK(loopback.service.last_attend.pattern == request.pattern);
  CHECK(loopback.service.last_attend.scale == 0.5f);
  CHECK(loopback.service.last_attend.layer == 5);
  REQUIRE(loopback.service.keys.size() == 1);
  CHECK(loopback.service.keys[0].client != 0);
}

TEST_CASE("one failing step leaves the others of its batch alone, hints included") {
  Loopback loopback;
  loopback.service.append_tokens_max = 1;
  const std::vector<float> values = Ramp(64);
  StepRequest append;
  append.k = TensorView::Contiguous(values.data(), DType::kF32, 2, 1, 8);
  const StepResults results =
      loopback.client->Step(Apart({Query(values, 1), append, Query(values, 2)}));
  REQUIRE(results.size() == 3);
  CHECK(results[0].ok());
  CHECK(absl::IsResourceExhausted(results[1].status()));
  CHECK(results[1].status().message() == "the cluster is full");
  REQUIRE(results[2].ok());
  CHECK(results[2]->out.tokens() == 2);
  CHECK(loopback.client->Step({}).empty());
}

TEST_CASE("batches above a message are cut, answers above a message too") {
  Loopback loopback;
  loopback.service.v_head_dim = 64;
  const std::vector<float> values = Ramp(1 << 18);  // 1 MiB
  std::vector<StepRequest> requests;
  for (int i = 0; i < 9; ++i) requests.push_back(Query(values, 1 << 14));
  requests.push_back(Query(values, 1));
  const StepResults results = loopback.client->Step(Apart(requests));
  REQUIRE(results.size() == requests.size());
  for (size_t i = 0; i < results.size(); ++i) {
    CAPTURE(i, results[i].status());
    REQUIRE(results[i].ok());
    CHECK(results[i]->out.tokens() == requests[i].q.tokens);
  }
  const std::vector<float> large = Ramp(1 << 20);
  const StepResults refused =
      loopback.client->Step(Apart({Query(values, 1), Query(large, 1 << 16)}));
  REQUIRE(refused.size() == 2);
  CHECK(refused[0].ok());
  CHECK(absl::IsInvalidArgument(refused[1].status()));
  CHECK(refused[1].status().message().find("requests[1].bytes: 4194") == 0);
}

TEST_CASE("steps of many threads do not meet") {
  Loopback loopback;
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const std::vector<float> q(16, static_cast<float>(i));
      for (int n = 0; n < 100; ++n) {
        const StepResults results = loopback.client->Step({Query(q, 1)});
        good += results[0].ok() && results[0]->out.f32()[0] == static_cast<float>(i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(good == 800);
}

TEST_CASE("a step's deadline and cancellation reach its work, and steps go on") {
  Loopback loopback;
  std::atomic<int> cancelled{0};
  std::atomic<int> late{0};
  std::atomic<bool> wait{true};
  loopback.service.before = [&](const char*, const CallContext& call) {
    if (!wait) return absl::OkStatus();
    const absl::Status status = FakeService::WaitForCaller(call);
    cancelled += absl::IsCancelled(status);
    late += absl::IsDeadlineExceeded(status);
    return status;
  };
  const std::vector<float> values = Ramp(64);
  StepResults results =
      loopback.client->Step({Query(values, 1)}, {.timeout = absl::Milliseconds(100)});
  CHECK(absl::IsDeadlineExceeded(results[0].status()));
  CallOptions call;
  call.cancel = CancelToken::New();
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(100));
    call.cancel.Cancel();
  });
  const absl::Time begin = absl::Now();
  results = loopback.client->Step({Query(values, 1)}, call);
  canceller.join();
  CHECK(absl::IsCancelled(results[0].status()));
  CHECK(absl::Now() - begin < absl::Seconds(2));
  wait = false;
  CHECK(loopback.client->Step({Query(values, 1)})[0].ok());
  for (int i = 0; i < 200 && cancelled + late < 2; ++i) absl::SleepFor(absl::Milliseconds(10));
  CHECK(cancelled + late == 2);
  CHECK(cancelled >= 1);
}

TEST_CASE("callers that leave in the middle do not strand the others") {
  Loopback loopback;
  std::atomic<int> calls{0};
  loopback.service.before = [&](const char*, const CallContext&) {
    absl::SleepFor(absl::Milliseconds(++calls % 3));
    return absl::OkStatus();
  };
  std::atomic<int> answered{0};
  std::atomic<int> left{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      const std::vector<float> q(16, static_cast<float>(i));
      for (int n = 0; n < 60; ++n) {
        CallOptions call;
        if (i % 3 == 1) call.timeout = absl::Milliseconds(2);
        if (i % 3 == 2) call.cancel = CancelToken::New();
        std::thread canceller;
        if (i % 3 == 2) canceller = std::thread([&] { call.cancel.Cancel(); });
        const StepResults results = loopback.client->Step({Query(q, 1)}, call);
        if (canceller.joinable()) canceller.join();
        if (results[0].ok()) {
          answered += results[0]->out.f32()[0] == static_cast<float>(i);
        } else {
          left += absl::IsCancelled(results[0].status()) ||
                  absl::IsDeadlineExceeded(results[0].status());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(answered + left == 360);
  CHECK(answered >= 120);
  CHECK(left > 0);
}

TEST_CASE("an open stream does not hold up a shutdown, and a restarted server is found again") {
  Loopback loopback;
  const std::vector<float> values = Ramp(64);
  REQUIRE(loopback.client->Step({Query(values, 1)})[0].ok());
  const std::string endpoint = loopback.endpoint();
  const absl::Time begin = absl::Now();
  loopback.server->Shutdown(absl::Seconds(10));
  CHECK(absl::Now() - begin < absl::Seconds(2));
  loopback.server.reset();
  // However short the time: a service that is away is not a service that is late.
  for (const int ms : {5, 60, 150, 300, 450}) {
    const StepResults down =
        loopback.client->Step({Query(values, 1)}, {.timeout = absl::Milliseconds(ms)});
    INFO(ms << " ms: " << down[0].status());
    CHECK(absl::IsUnavailable(down[0].status()));
    CHECK(down[0].status().message().find(endpoint) != absl::string_view::npos);
  }

  auto again = RpcServer::Start({.listen = endpoint, .service = &loopback.service});
  INFO(again.status());
  REQUIRE(again.ok());
  bool good = false;
  for (int i = 0; i < 100 && !good; ++i) {
    good = loopback.client->Step({Query(values, 1)})[0].ok();
    if (!good) absl::SleepFor(absl::Milliseconds(50));
  }
  CHECK(good);
  CHECK(loopback.client->connection() == ConnectionState::kReady);
}

TEST_CASE("batches under way at once have a stream each, and streams are kept for the next ones") {
  Loopback loopback({.step_streams_max = 4});  // of which one peer has half
  std::atomic<int> inside{0};
  std::atomic<int> most{0};
  loopback.service.before = [&](const char*, const CallContext&) {
    most = std::max(most.load(), ++inside);
    absl::SleepFor(absl::Milliseconds(20));
    --inside;
    return absl::OkStatus();
  };
  const std::vector<float> values = Ramp(1 << 18);
  const auto cut =
      Apart(std::vector<StepRequest>(6, Query(values, 1 << 14)));  // more than a message holds
  for (int i = 0; i < 5; ++i) {
    for (const auto& result : loopback.client->Step(cut))
      CHECK(result.status() == absl::OkStatus());
  }
  CHECK(most == 2);
}

TEST_CASE("the bound on streams is named when all of them work, and idle ones make room") {
  Loopback loopback({.step_streams_max = 1});
  std::atomic<bool> wait{true};
  std::atomic<bool> inside{false};
  loopback.service.before = [&](const char*, const CallContext&) {
    inside = true;
    while (wait) absl::SleepFor(absl::Milliseconds(1));
    return absl::OkStatus();
  };
  const std::vector<float> values = Ramp(64);
  std::thread first([&] { CHECK(loopback.client->Step({Query(values, 1)})[0].ok()); });
  while (!inside) absl::SleepFor(absl::Milliseconds(1));
  const auto second = loopback.Connect(1 << 20);
  const StepResults refused =
      second->Step({Query(values, 1)}, {.timeout = absl::Milliseconds(500)});
  CHECK(absl::IsResourceExhausted(refused[0].status()));
  CHECK(refused[0].status().message().find("step_streams_max: 1; ") != absl::string_view::npos);
  CHECK(RetryAfter(refused[0].status()).has_value());
  wait = false;
  first.join();
  // The two have one stream between them and notice nothing.
  for (int i = 0; i < 3; ++i) {
    absl::SleepFor(absl::Milliseconds(150));
    const StepResults one = second->Step({Query(values, 1)});
    absl::SleepFor(absl::Milliseconds(150));
    const StepResults other = loopback.client->Step({Query(values, 1)});
    INFO(one[0].status() << " " << other[0].status());
    CHECK(one[0].ok());
    CHECK(other[0].ok());
  }
}

// A raw stream of steps, for clients that no library is.
struct RawSteps {
  explicit RawSteps(const Loopback& loopback)
      : stub(v1::Annulus::NewStub(MakeChannel(loopback.endpoint()))),
        stream(stub->Steps(&context)) {}
  v1::StepsReply Ask(const v1::StepBatch& batch) {
    v1::StepsReply reply;
    CHECK(stream->Write(batch));
    CHECK(stream->Read(&reply));
    return reply;
  }
  grpc::ClientContext context;
  std::unique_ptr<v1::Annulus::Stub> stub;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepBatch, v1::StepsReply>> stream;
};

v1::Step* AddStep(v1::StepBatch* batch) {
  const std::vector<float> values = Ramp(16);
  ToProto(std::vector<StepRequest>{Query(values, 1)}, batch);
  return batch->mutable_steps(batch->steps_size() - 1);
}

TEST_CASE("a malformed step is refused by name and the stream goes on") {
  const Loopback loopback;
  RawSteps raw(loopback);
  const auto refused = [&](const std::function<void(v1::Step*)>& change, const char* text) {
    v1::StepBatch batch;
    AddStep(&batch);
    change(AddStep(&batch));
    const v1::StepsReply reply = raw.Ask(batch);
    REQUIRE(reply.answers_size() == 2);
    CAPTURE(reply.answers(1).failure().message());
    CHECK(reply.answers(1).failure().code() == 3);
    CHECK(reply.answers(1).failure().message().find(text) == 0);
    CHECK_FALSE(reply.answers(0).has_failure());
  };
  refused([](v1::Step* s) { s->set_start(-1); }, "steps[1].start: -1");
  refused([](v1::Step* s) { s->mutable_q()->mutable_data()->pop_back(); },
          "steps[1].q.data: 63 bytes; expected 64");
  refused([](v1::Step* s) { s->mutable_k(); }, "steps[1].k.dtype");
  refused([](v1::Step* s) { s->mutable_v()->mutable_shape()->set_dtype("f8"); },
          "steps[1].v.dtype");
  refused([](v1::Step* s) { s->mutable_q()->mutable_shape()->set_heads(INT64_MAX); },
          "steps[1].q: [");
  v1::StepBatch good;
  AddStep(&good);
  CHECK(raw.Ask(good).answers(0).out().shape().dim() == 16);
  raw.stream->WritesDone();
  v1::StepsReply reply;
  CHECK_FALSE(raw.stream->Read(&reply));
  CHECK(raw.stream->Finish().ok());
}

TEST_CASE("a stream that is given up stops its work, and reads no second batch meanwhile") {
  Loopback loopback;
  std::atomic<bool> ended{false};
  loopback.service.before = [&](const char*, const CallContext& call) {
    const absl::Status status = FakeService::WaitForCaller(call);
    ended = true;
    return status;
  };
  RawSteps raw(loopback);
  v1::StepBatch batch;
  AddStep(&batch);
  CHECK(raw.stream->Write(batch));
  CHECK(raw.stream->Write(batch));
  for (int i = 0; i < 100 && loopback.service.calls < 1; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  raw.context.TryCancel();
  CHECK_FALSE(raw.stream->Finish().ok());
  for (int i = 0; i < 200 && !ended; ++i) absl::SleepFor(absl::Milliseconds(10));
  CHECK(ended);
  CHECK(loopback.service.calls == 1);
}

TEST_CASE("a reply that does not fit its batch is refused by the client") {
  const std::vector<float> values = Ramp(16);
  const std::vector<StepRequest> requests = {Query(values, 1)};
  const auto read = [&](const std::function<void(v1::StepsReply*)>& change) {
    StepResult result;
    result.out = Tensor(DType::kF32, 1, 2, 8);
    result.lse = Tensor(DType::kF32, 1, 2, 1);
    std::vector<absl::StatusOr<StepResult>> results;
    results.push_back(std::move(result));
    v1::StepsReply reply;
    SendAnswers(results, [&](const v1::StepsReply& sent) {
      reply = sent;
      return true;
    });
    change(&reply);
    StepAnswersReader reader(requests);
    const absl::Status status = reader.Add(reply);
    if (!status.ok()) return status;
    CHECK(reader.complete());
    return reader.Take()[0].status();
  };
  CHECK(read([](v1::StepsReply*) {}).ok());
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) { r->set_first(1); })));
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) { r->set_first(-1); })));
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) { r->add_answers(); })));
  CHECK(
      absl::IsInternal(read([](v1::StepsReply* r) { r->mutable_answers(0)->mutable_failure(); })));
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) { r->mutable_answers(0)->clear_out(); })));
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) {
    r->mutable_answers(0)->mutable_out()->mutable_shape()->set_tokens(2);
  })));
  CHECK(absl::IsInternal(read([](v1::StepsReply* r) {
    r->mutable_answers(0)->mutable_lse()->mutable_data()->pop_back();
  })));
}

}  // namespace
}  // namespace annulus
