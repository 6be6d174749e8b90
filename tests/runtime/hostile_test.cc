// Requests that make no sense, straight at the service: each is refused with the name of the field.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

ContextSpec GoodSpec() {
  ContextSpec spec;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 16;
  spec.v_head_dim = 8;
  return spec;
}

void Refused(const absl::Status& status, absl::string_view field) {
  INFO(status << ", expected it to name " << field);
  CHECK(absl::IsInvalidArgument(status));
  CHECK(std::string(status.message()).find(std::string(field)) != std::string::npos);
  CHECK(status.message().find('\n') == absl::string_view::npos);
}

TEST_CASE("CreateContext names the field that makes no sense") {
  LocalCluster cluster({.workers = 1});
  const auto refused = [&](absl::string_view field,
                           const std::function<void(ContextSpec&)>& spoil) {
    ContextSpec spec = GoodSpec();
    spoil(spec);
    Refused(cluster.service().Call(spec, {}).status(), field);
  };
  for (const int bad : {0, -1, 1025, std::numeric_limits<int>::min()}) {
    refused("layers", [bad](ContextSpec& spec) { spec.layers = bad; });
  }
  for (const int bad : {0, -4, 3, 4098, std::numeric_limits<int>::max()}) {
    refused("heads", [bad](ContextSpec& spec) { spec.heads = bad; });
  }
  refused("kv_heads", [](ContextSpec& spec) { spec.kv_heads = 0; });
  for (const int bad : {0, 4, 9, 584, -8}) {
    refused("head_dim", [bad](ContextSpec& spec) { spec.head_dim = bad; });
    refused("v_head_dim", [bad](ContextSpec& spec) { spec.v_head_dim = bad; });
  }
  refused("owner", [](ContextSpec& spec) { spec.owner = "\xff\xfe"; });
  refused("patterns[0]", [](ContextSpec& spec) { spec.patterns = {"causal\xc0\xaf"}; });
  refused("tracks[0].name", [](ContextSpec& spec) { spec.tracks = {{.name = "\xff", .dim = 8}}; });
  refused("v_is_k_prefix", [](ContextSpec& spec) {
    spec.v_is_k_prefix = true;
    spec.v_head_dim = 24;
  });
  refused("dtype", [](ContextSpec& spec) { spec.dtype = static_cast<DType>(77); });
  refused("placement", [](ContextSpec& spec) { spec.placement = static_cast<Placement>(9); });
  refused("unit_blocks", [](ContextSpec& spec) { spec.partition.unit_blocks = 0; });
  refused("tokens_expected", [](ContextSpec& spec) { spec.tokens_expected = -1; });
  refused("tokens_expected",
          [](ContextSpec& spec) { spec.tokens_expected = std::numeric_limits<int64_t>::max(); });
  refused("replicas", [](ContextSpec& spec) { spec.replicas = 0; });
  refused("replicas", [](ContextSpec& spec) { spec.replicas = 3; });
  refused("lease", [](ContextSpec& spec) { spec.lease = -1; });
  refused("lease", [](ContextSpec& spec) { spec.lease = 1e12; });
  refused("lease", [](ContextSpec& spec) { spec.lease = std::nan(""); });
  refused("patterns: 3", [](ContextSpec& spec) { spec.patterns.resize(3, "full"); });
  refused("patterns[0]", [](ContextSpec& spec) { spec.patterns = {"windows(3)"}; });
  refused("bytes of patterns",
          [](ContextSpec& spec) { spec.patterns = {std::string(1 << 20, ' ') + "full"}; });
  refused("kv_efficient", [](ContextSpec& spec) { spec.kv_efficient = true; });
  refused("tokens_expected", [](ContextSpec& spec) {
    spec.partition = {PartitionKind::kZigzag, 1};
  });
}

TEST_CASE("Append and Attend name the field that makes no sense, and go on afterwards") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(1);
  ContextSpec spec = GoodSpec();
  spec.dtype = DType::kF16;
  LayerKv kv(spec, 100, rng);
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(service.Call(kv.Append(id, 0, 0, 64), {}).ok());

  const auto append = [&](absl::string_view field,
                          const std::function<void(AppendRequest&)>& spoil) {
    AppendRequest request = kv.Append(id, 0, 64, 30);
    spoil(request);
    Refused(service.Call(request, {}).status(), field);
  };
  append("layer", [](AppendRequest& r) { r.layer = 1; });
  append("layer", [](AppendRequest& r) { r.layer = -1; });
  append("start", [](AppendRequest& r) { r.start = 63; });
  append("start", [](AppendRequest& r) { r.start = std::numeric_limits<int64_t>::min(); });
  append("tokens of k", [](AppendRequest& r) { r.k.tokens = 0; });
  append("tokens of k", [](AppendRequest& r) { r.k.tokens = -5; });
  append("tokens of k", [](AppendRequest& r) { r.k.tokens = int64_t{1} << 62; });
  append("request_bytes_max", [](AppendRequest& r) { r.k.tokens = int64_t{1} << 30; });
  append("shape of k", [](AppendRequest& r) { r.k.heads = 3; });
  append("shape of k", [](AppendRequest& r) { r.k.dim = -16; });
  append("shape of v", [](AppendRequest& r) { r.v.dim = 16; });
  append("v.tokens", [](AppendRequest& r) { r.v.tokens = 29; });
  append("v.dtype", [](AppendRequest& r) { r.v.dtype = static_cast<DType>(3); });
  append("k.data", [](AppendRequest& r) { r.k.data = nullptr; });
  // Finite in f32, but not in the context's f16.
  for (const float bad : {NAN, INFINITY, -INFINITY, 65520.0f}) {
    const float good = std::exchange(kv.k.f32()[(70 * 2 + 1) * 16 + 5], bad);
    append("k[6, 1, 5]: not finite; expected", [](AppendRequest&) {});
    kv.k.f32()[(70 * 2 + 1) * 16 + 5] = good;
  }
  CHECK(absl::IsNotFound(service.Call(kv.Append(id + 1, 0, 0, 1), {}).status()));

  Tensor q = test::RandomTensor(10, 4, 16, rng);
  const auto attend = [&](absl::string_view field,
                          const std::function<void(AttendRequest&)>& spoil) {
    AttendRequest request;
    request.context = id;
    request.q_start = 54;
    request.kv_len = 64;
    request.q = q;
    spoil(request);
    Refused(service.Call(request, {}).status(), field);
  };
  attend("layer", [](AttendRequest& r) { r.layer = 77; });
  attend("kv_len", [](AttendRequest& r) { r.kv_len = 65; });
  attend("kv_len", [](AttendRequest& r) { r.kv_len = 0; });
  attend("kv_len", [](AttendRequest& r) { r.kv_len = -64; });
  attend("q_start", [](AttendRequest& r) { r.q_start = -1; });
  attend("q_start", [](AttendRequest& r) { r.q_start = std::numeric_limits<int64_t>::max(); });
  attend("keys: [64, 64)", [](AttendRequest& r) { r.keys_begin = 64; });
  attend("keys: [0, 65)", [](AttendRequest& r) { r.keys_end = 65; });
  attend("keys: [7, 3)", [](AttendRequest& r) { r.keys_begin = 7, r.keys_end = 3; });
  attend("keys: [-1, 64)", [](AttendRequest& r) { r.keys_begin = -1; });
  attend("q_start", [](AttendRequest& r) { r.q_start = std::numeric_limits<int64_t>::min(); });
  attend("tokens of q", [](AttendRequest& r) { r.q.tokens = 0; });
  attend("shape of q", [](AttendRequest& r) { r.q.heads = 2; });
  attend("shape of q", [](AttendRequest& r) { r.q.dim = 8; });
  attend("q.dtype", [](AttendRequest& r) { r.q.dtype = static_cast<DType>(200); });
  attend("scale", [](AttendRequest& r) { r.scale = NAN; });
  attend("scale", [](AttendRequest& r) { r.scale = INFINITY; });
  attend("plan", [](AttendRequest& r) { r.plan = static_cast<PlanKind>(99); });
  attend("", [](AttendRequest& r) { r.pattern = "window("; });
  attend("", [](AttendRequest& r) { r.pattern = "heads(0: causal)"; });
  attend("", [](AttendRequest& r) { r.pattern = std::string("causal\0\n\xff", 9); });
  q.f32()[7] = NAN;
  attend("q[0, 0, 7]: not finite; expected", [](AttendRequest&) {});
  q.f32()[7] = 0;

  CHECK(service.Call(kv.Append(id, 0, 64, 30), {}).ok());
  CHECK(service.Call(DescribeRequest{id}, {})->tokens[0] == 94);
}

TEST_CASE("Random requests get an answer or the name of a field") {
  const uint64_t seed = 77;
  CAPTURE(seed);
  Rng rng(seed);
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  const ContextSpec spec = GoodSpec();
  const LayerKv kv(spec, 128, rng);
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(service.Call(kv.Append(id, 0, 0, 128), {}).ok());
  const Tensor q = test::RandomTensor(128, 8, 32, rng);  // larger than any view below needs
  const auto odd = [&rng](int64_t good) {
    constexpr int64_t kOdd[] = {
        0, -1, 1, 65, int64_t{1} << 31, int64_t{1} << 62, std::numeric_limits<int64_t>::min()};
    return rng.Below(4) != 0 ? good : kOdd[rng.Below(7)];
  };
  int answered = 0;
  const uint64_t cases = test::NumberFromEnvironment("ANNULUS_HOSTILE_CASES", 2000);
  for (uint64_t i = 0; i < cases; ++i) {
    AttendRequest request;
    request.context = rng.Below(20) == 0 ? id + rng.Below(3) : id;
    request.q = TensorView::Contiguous(q.data(), static_cast<DType>(rng.Below(10) ? 0 : 7), odd(4),
                                       odd(4), odd(16));
    request.kv_len = odd(128);
    request.q_start = odd(std::max<int64_t>(request.kv_len, 4) - 4);
    request.layer = static_cast<int>(odd(0));
    const auto answer = service.Call(request, {});
    answered += answer.ok();
    if (answer.ok()) continue;
    INFO(answer.status());
    REQUIRE((absl::IsInvalidArgument(answer.status()) || absl::IsNotFound(answer.status())));
    REQUIRE(!answer.status().message().empty());
  }
  test::Tell({9, "hostile shapes, types and lengths", absl::StrCat(cases, " requests"),
              "each answered or refused by field, 0 crashes",
              absl::StrCat(answered, " answered, ", cases - static_cast<uint64_t>(answered),
                           " refused, 0 crashes"),
              true});
  CHECK(answered > 100);
}

}  // namespace
}  // namespace annulus
