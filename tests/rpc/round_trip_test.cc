// Every call of the client through a real server over loopback to a fake service.
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/rpc/loopback.h"

namespace annulus {
namespace {

Buffer RandomBytes(int64_t count, uint64_t seed) {
  Buffer buffer(static_cast<size_t>(count));
  Rng rng(seed);
  for (size_t i = 0; i < buffer.size(); ++i) buffer.data()[i] = static_cast<std::byte>(rng.Next());
  return buffer;
}

TEST_CASE("a context's spec and info survive the wire") {
  Loopback loopback;
  ContextSpec spec{.layers = 3,
                   .heads = 128,
                   .kv_heads = 1,
                   .head_dim = 576,
                   .v_head_dim = 512,
                   .v_is_k_prefix = true,
                   .dtype = DType::kF16,
                   .placement = Placement::kMesh,
                   .partition = {PartitionKind::kZigzag, 1},
                   .tokens_expected = 1 << 20,
                   .patterns = {"causal", "s2(64,2,2)", "window(64) & causal"},
                   .kv_efficient = true,
                   .replicas = 2,
                   .lease = 12.5,
                   .evictable = true};
  const auto info = loopback.client->CreateContext(spec);
  REQUIRE(info.ok());
  CHECK(info->id == 0xfedcba9876543210u);
  CHECK(info->epoch == 7);
  CHECK(info->tokens == std::vector<int64_t>{0, 0, 0});
  CHECK(info->kv_bytes == 12345);
  CHECK(info->dense_kv_bytes == 23456);
  CHECK(info->state == "ok");
  CHECK(info->spec.layers == 3);
  CHECK(info->spec.heads == 128);
  CHECK(info->spec.kv_heads == 1);
  CHECK(info->spec.head_dim == 576);
  CHECK(info->spec.v_head_dim == 512);
  CHECK(info->spec.v_is_k_prefix);
  CHECK(info->spec.dtype == DType::kF16);
  CHECK(info->spec.placement == Placement::kMesh);
  CHECK(info->spec.partition == spec.partition);
  CHECK(info->spec.tokens_expected == 1 << 20);
  CHECK(info->spec.patterns == spec.patterns);
  CHECK(info->spec.kv_efficient);
  CHECK(info->spec.replicas == 2);
  CHECK(info->spec.lease == 12.5);
  CHECK(info->spec.evictable);
  CHECK(info->idle_s == 1.5);

  const auto fork = loopback.client->Fork({.context = info->id, .tokens = 7});
  REQUIRE(fork.ok());
  CHECK(fork->id == info->id + 1);
  CHECK(loopback.service.last_fork.context == info->id);
  CHECK(loopback.service.last_fork.tokens == 7);
  REQUIRE(loopback.client->Fork({.context = 3, .tokens = {}}).ok());
  CHECK_FALSE(loopback.service.last_fork.tokens.has_value());
  REQUIRE(loopback.client->Truncate({.context = 4, .tokens = 1000}).ok());
  CHECK(loopback.service.last_truncate.context == 4);
  CHECK(loopback.service.last_truncate.tokens == 1000);
  const auto list = loopback.client->List({.after = 5, .limit = 17});
  REQUIRE(list.ok());
  REQUIRE(list->size() == 1);
  CHECK(list->front().spec.patterns == spec.patterns);
  CHECK(loopback.service.last_list.after == 5);
  CHECK(loopback.service.last_list.limit == 17);

  CHECK(loopback.client->Describe(info->id)->kv_bytes == 12345);
  const auto renewed = loopback.client->KeepAlive(std::vector<ContextId>{1, 404, 3});
  CHECK(renewed ==
        std::vector<absl::Status>{{}, absl::NotFoundError("context 404 does not exist"), {}});
  CHECK(loopback.client->Release(info->id).ok());
  CHECK(absl::IsNotFound(loopback.client->Release(5)));
  const auto missing = loopback.client->Describe(6);
  CHECK(absl::IsNotFound(missing.status()));
  CHECK(missing.status().message() == "context 6 is unknown");

  const auto status = loopback.client->Status();
  REQUIRE(status.ok());
  CHECK(status->epoch == 7);
  REQUIRE(status->contexts.size() == 1);
  CHECK(status->contexts[0].spec.head_dim == 576);
  REQUIRE(status->workers.size() == 3);
  CHECK(status->workers[1].state == "lost");
  CHECK(status->workers[1].backend == "cpu (AVX2)");
  CHECK(status->workers[1].address == "b:2");
  CHECK(status->workers[2].kv_bytes == 11);
  CHECK(status->workers[2].kv_bytes_limit == 1000);
}

TEST_CASE("appended bytes arrive whole and in order, whatever the shape and the chunk") {
  const uint64_t seed = 20261123;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 40; ++round) {
    const DType k_dtype = static_cast<DType>(rng.Below(3));
    const DType v_dtype = static_cast<DType>(rng.Below(3));
    const int64_t tokens = rng.Between(1, 300);
    const int64_t heads = rng.Between(1, 5);
    const int64_t dim = rng.Between(1, 40);
    const int64_t v_dim = rng.Between(1, 40);
    const int64_t chunk_bytes = rng.Between(1, 3000);
    CAPTURE(round, tokens, heads, dim, v_dim, chunk_bytes);
    Loopback loopback({}, chunk_bytes);
    const Buffer k = RandomBytes(tokens * heads * dim * 4, rng.Next());
    const Buffer v = RandomBytes(tokens * heads * v_dim * 4, rng.Next());
    AppendRequest request;
    request.k = TensorView::Contiguous(k.data(), k_dtype, tokens, heads, dim);
    const bool has_v = rng.Below(4) != 0;
    if (has_v) request.v = TensorView::Contiguous(v.data(), v_dtype, tokens, heads, v_dim);
    const auto result = loopback.client->Append(request);
    INFO(result.status());
    REQUIRE(result.ok());
    CHECK(result->tokens == tokens);
    CHECK(result->epoch == 7);
    CHECK(loopback.service.k_bytes == BytesOf(request.k));
    CHECK(loopback.service.v_bytes == BytesOf(request.v));
    CHECK(loopback.service.last_append.k.dtype == k_dtype);
    if (has_v) CHECK(loopback.service.last_append.v.dtype == v_dtype);
  }
}

TEST_CASE("strided views are packed by rows") {
  Loopback loopback({}, 100);
  const int64_t tokens = 9, heads = 6, dim = 7;
  const Buffer bytes = RandomBytes(tokens * heads * dim * 2, 5);
  const TensorView whole = TensorView::Contiguous(bytes.data(), DType::kBF16, tokens, heads, dim);
  AppendRequest request;
  request.k = whole.Heads(1, 3).Tokens(2, 5);
  TensorView transposed = whole;  // [heads, tokens, dim] in memory
  transposed.token_stride = dim;
  transposed.head_stride = tokens * dim;
  request.v = transposed.Tokens(4, 5);
  REQUIRE(loopback.client->Append(request).ok());
  CHECK(loopback.service.k_bytes == BytesOf(request.k));
  CHECK(loopback.service.v_bytes == BytesOf(request.v));
}

TEST_CASE("a large upload goes piece by piece and says how far it is") {
  Loopback loopback;
  const int64_t tokens = 131'071, heads = 2, dim = 64;  // 32 MiB each of K and V
  const Buffer k = RandomBytes(tokens * heads * dim * 2, 1);
  const Buffer v = RandomBytes(tokens * heads * dim * 2, 2);
  AppendRequest request;
  request.k = TensorView::Contiguous(k.data(), DType::kBF16, tokens, heads, dim);
  request.v = TensorView::Contiguous(v.data(), DType::kBF16, tokens, heads, dim);
  int64_t last = 0;
  bool rising = true;
  CallOptions call;
  call.progress = [&](int64_t done, int64_t total) {
    rising = rising && done > last && total == 2 * tokens * heads * dim * 2;
    last = done;
  };
  const auto result = loopback.client->Append(request, call);
  INFO(result.status());
  REQUIRE(result.ok());
  CHECK(rising);
  CHECK(last == 2 * tokens * heads * dim * 2);
  loopback.server.reset();  // its threads have ended: what they wrote is visible
  CHECK(loopback.service.pieces.size() == 16);
  CHECK(loopback.service.pieces[0] % 64 == 0);
  CHECK(loopback.service.k_bytes == BytesOf(request.k));
  CHECK(loopback.service.v_bytes == BytesOf(request.v));
}

TEST_CASE("a failing piece ends the upload and tells what is committed") {
  Loopback loopback;
  loopback.service.append_tokens_max = 40'000;
  const int64_t tokens = 65'536;
  const Buffer k = RandomBytes(tokens * 64 * 4, 1);
  AppendRequest request;
  request.k = TensorView::Contiguous(k.data(), DType::kF32, tokens, 1, 64);
  const auto result = loopback.client->Append(request);
  CHECK(absl::IsResourceExhausted(result.status()));
  CHECK(result.status().message() ==
        "the cluster is full (32768 of this request's 65536 tokens are committed)");
}

TEST_CASE("queries and answers survive the wire") {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Loopback loopback({.chunk_bytes = 1000}, 777);
    const int64_t tokens = 37, heads = 6, dim = 24;
    const std::vector<float> values = Ramp(tokens * heads * dim);
    std::vector<std::byte> q(values.size() * SizeOf(dtype));
    Convert(values.data(), DType::kF32, q.data(), dtype, static_cast<int64_t>(values.size()));
    AttendRequest request{.context = 1, .layer = 2, .q_start = 1'000'000'000, .kv_len = 12};
    request.q = TensorView::Contiguous(q.data(), dtype, tokens, heads, dim);
    request.pattern = "causal & (window(3) | sink(4))";
    request.plan = PlanKind::kPassQ;
    request.scale = 0.125f;
    request.request_id = "r-1";
    request.trace = true;
    request.keys_begin = 5;
    if (dtype != DType::kF16) request.keys_end = 11;
    const auto answer = loopback.client->Attend(request);
    INFO(answer.status());
    REQUIRE(answer.ok());
    REQUIRE(answer->out.tokens() == tokens);
    REQUIRE(answer->out.heads() == heads);
    REQUIRE(answer->out.dim() == 16);
    REQUIRE(answer->lse.dim() == 1);
    int wrong = 0;
    std::vector<float> rounded(values.size());
    Convert(q.data(), dtype, rounded.data(), DType::kF32, static_cast<int64_t>(values.size()));
    for (int64_t row = 0; row < tokens * heads; ++row) {
      for (int64_t c = 0; c < 16; ++c) {
        wrong += answer->out.f32()[row * 16 + c] != rounded[static_cast<size_t>(row * dim + c)];
      }
      const float lse = static_cast<float>(row / heads) + static_cast<float>(row % heads) / 100;
      wrong += answer->lse.f32()[row] != lse;
    }
    CHECK(wrong == 0);
    CHECK(answer->epoch == 9);
    CHECK(answer->stats.plan == "group-cast");
    CHECK(answer->stats.visited_pairs == 11);
    CHECK(answer->stats.work_pairs == 12);
    CHECK(answer->stats.bytes_moved == 1000);
    CHECK(answer->stats.planned_bytes == 900);
    CHECK(answer->stats.elapsed_s == 0.25);
    REQUIRE(answer->stats.workers.size() == 2);
    CHECK(answer->stats.workers[1].worker == 7);
    CHECK(answer->stats.workers[1].bytes_received == 10);
    REQUIRE(answer->trace.size() == 1);
    CHECK(answer->trace[0].end_ns == 5000);
    const AttendRequest& came = loopback.service.last_attend;
    CHECK(BytesOf(came) == BytesOf(request));  // but for q
    CHECK(came.keys_begin == 5);
    CHECK(came.keys_end == request.keys_end);
  }
}

TEST_CASE("64 MiB of queries and their answer cross in chunks") {
  Loopback loopback;
  loopback.service.v_head_dim = 64;
  const int64_t tokens = 16'384, heads = 16, dim = 64;
  const std::vector<float> q = Ramp(tokens * heads * dim);
  AttendRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, tokens, heads, dim);
  const auto answer = loopback.client->Attend(request);
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(answer->stats.workers.size() == 2);
  CHECK(answer->trace.empty());
  CHECK(std::equal(q.begin(), q.end(), answer->out.f32()));
}

TEST_CASE("every status code and its message cross unchanged") {
  Loopback loopback;
  for (int code = 1; code <= 16; ++code) {
    const auto expected = static_cast<absl::StatusCode>(code);
    loopback.service.before = [&](const char*, const CallContext&) {
      return absl::Status(expected, "why: \"ünï\" %25\n");
    };
    const absl::Status status = loopback.client->Status().status();
    CAPTURE(code, status);
    CHECK(status.code() == expected);
    CHECK(status.message().find("why: \"ünï\" %25\n") != absl::string_view::npos);
  }
  loopback.service.before = [&](const char*, const CallContext&) {
    return absl::InvalidArgumentError(std::string(100'000, '\x01'));
  };
  const absl::Status status = loopback.client->Status().status();
  CHECK(absl::IsInvalidArgument(status));
}

TEST_CASE("a deadline reaches the work and the caller") {
  Loopback loopback;
  std::atomic<bool> ended{false};
  loopback.service.before = [&](const char* name, const CallContext& call) {
    if (name != std::string("Attend")) return absl::OkStatus();
    if (call.deadline > absl::Now() + absl::Milliseconds(500)) return absl::OkStatus();
    const absl::Status status = FakeService::WaitForCaller(call);
    ended = true;
    return status;
  };
  const std::vector<float> q = Ramp(8);
  AttendRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 1, 8);
  const absl::Time begin = absl::Now();
  const auto answer = loopback.client->Attend(request, {.timeout = absl::Milliseconds(300)});
  CHECK(absl::IsDeadlineExceeded(answer.status()));
  CHECK(absl::Now() - begin < absl::Seconds(2));
  loopback.server->Shutdown(absl::Seconds(5));
  CHECK(ended);
  CHECK(loopback.service.calls == 1);
}

TEST_CASE("a past deadline starts no work") {
  Loopback loopback;
  const auto status = loopback.client->Status({.timeout = absl::Milliseconds(-5)});
  CHECK(absl::IsDeadlineExceeded(status.status()));
  CHECK(loopback.service.calls == 0);
}

TEST_CASE("a server that has gone is unavailable, by name") {
  Loopback loopback;
  const std::string endpoint = loopback.endpoint();
  REQUIRE(loopback.client->Status().ok());
  loopback.server.reset();
  const std::vector<float> q = Ramp(8);
  AttendRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 1, 8);
  const absl::Status status = loopback.client->Attend(request).status();
  CAPTURE(status);
  CHECK(absl::IsUnavailable(status));
  CHECK(status.message().find(endpoint) != absl::string_view::npos);
  AppendRequest append;
  append.k = request.q;
  CHECK(absl::IsUnavailable(loopback.client->Append(append).status()));
  CHECK(absl::IsUnavailable(loopback.client->Status().status()));
}

TEST_CASE("nobody at the endpoint is told within the connect timeout") {
  for (const char* endpoint : {"127.0.0.1:1", "no-such-host.invalid:7"}) {
    const absl::Time begin = absl::Now();
    const auto client =
        Client::Connect({.endpoint = endpoint, .connect_timeout = absl::Milliseconds(400)});
    CAPTURE(endpoint, client.status());
    CHECK(absl::IsUnavailable(client.status()));
    CHECK(client.status().message().find(absl::StrCat("\"", endpoint, "\"")) !=
          absl::string_view::npos);
    CHECK(absl::Now() - begin < absl::Seconds(3));
  }
}

TEST_CASE("a server that does not serve yet is waited for") {
  Loopback loopback;
  loopback.server->SetServing(false);
  const auto refused = Client::Connect(
      {.endpoint = loopback.endpoint(), .connect_timeout = absl::Milliseconds(200)});
  CHECK(absl::IsUnavailable(refused.status()));
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(200));
    loopback.server->SetServing(true);
  });
  CHECK(Client::Connect({.endpoint = loopback.endpoint()}).ok());
  later.join();
}

TEST_CASE("views that cannot be streamed are refused before anything is sent") {
  Loopback loopback;
  const std::vector<float> values = Ramp(64);
  const auto attend = [&](TensorView q, std::string pattern) {
    AttendRequest request;
    request.q = q;
    request.pattern = std::move(pattern);
    return loopback.client->Attend(request).status();
  };
  const TensorView good = TensorView::Contiguous(values.data(), DType::kF32, 2, 4, 8);
  TensorView view = good;
  view.data = nullptr;
  CHECK(absl::IsInvalidArgument(attend(view, "causal")));
  view = good;
  view.tokens = -1;
  CHECK(attend(view, "causal").message() == "q.tokens: -1; expected 1 or more");
  view = good;
  view.heads = view.dim = INT64_MAX;
  CHECK(absl::IsInvalidArgument(attend(view, "causal")));
  CHECK(attend(good, "caus\xc3\xa4l").message().find("position 4") != absl::string_view::npos);
  CHECK(loopback.service.calls == 0);
  CHECK(attend(good, "causal").ok());
  for (const char* endpoint : {"", "localhost", "127.0.0.1:99999", "http://localhost:1"}) {
    CHECK(absl::IsInvalidArgument(Client::Connect({.endpoint = endpoint}).status()));
  }
  CHECK(absl::IsInvalidArgument(
      Client::Connect({.endpoint = loopback.endpoint(), .chunk_bytes = 4 << 20}).status()));
  CHECK(absl::IsInvalidArgument(
      Client::Connect({.endpoint = loopback.endpoint(), .chunk_bytes = 0}).status()));
}

TEST_CASE("many threads share a client") {
  Loopback loopback;
  const std::vector<float> q = Ramp(64);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      AttendRequest request;
      request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 4, 16);
      for (int n = 0; n < 50; ++n) good += loopback.client->Attend(request).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(good == 400);
}

}  // namespace
}  // namespace annulus
