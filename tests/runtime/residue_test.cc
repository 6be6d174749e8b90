// Memory that one tenant has used shows nothing of it to another one. The first fills KV, buffers
// of messages and answers with a mark, and lets go of them; the second stores zeros only, so that
// everything it is answered is known: out is 0 and lse the log of how many keys are seen. A byte of
// the mark anywhere in between would change one or the other.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/kv_store.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

constexpr float kMark = 77;

ContextSpec Spec() {
  ContextSpec spec;
  spec.layers = 2;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 32;
  spec.dtype = DType::kF32;
  spec.partition.unit_blocks = 1;
  return spec;
}

Tensor Filled(int64_t tokens, int64_t heads, float value) {
  Tensor tensor(DType::kF32, tokens, heads, 32);
  std::fill_n(tensor.f32(), tokens * heads * 32, value);
  return tensor;
}

// A tenant and its calls. What went wrong is in `failures`.
struct Tenant {
  Tenant(Service& service, std::string name, float value) : service(service), value(value) {
    call.caller = {name, name, Role::kTenant};
  }

  ContextId Make(const ContextSpec& spec = Spec()) { return service.Call(spec, call)->id; }
  void Append(ContextId id, int layer, int64_t start, int64_t tokens) {
    const Tensor kv = Filled(tokens, 2, value);
    AppendRequest append;
    append.context = id;
    append.layer = layer;
    append.start = start;
    append.k = append.v = kv;
    const auto appended = service.Call(append, call);
    INFO(appended.status());
    CHECK(appended.ok());
  }
  absl::StatusOr<AttendResult> Attend(ContextId id, int64_t kv_len, int64_t q_tokens,
                                      const std::string& pattern) {
    const Tensor q = Filled(q_tokens, 4, 1);
    AttendRequest attend;
    attend.context = id;
    attend.kv_len = kv_len;
    attend.q_start = kv_len - q_tokens;
    attend.q = q;
    attend.pattern = pattern;
    return service.Call(attend, call);
  }
  absl::StatusOr<StepResult> Step(ContextId id, int64_t start) {
    const Tensor kv = Filled(1, 2, value);
    const Tensor q = Filled(1, 4, 1);
    StepRequest step;
    step.context = id;
    step.start = start;
    step.k = step.v = kv;
    step.q = q;
    return std::move(test::Step(service, {&step, 1}, call)[0]);
  }

  Service& service;
  const float value;
  CallContext call;
};

// Values that are not what zeros give where `seen(row)` keys are seen.
template <typename Seen>
int64_t Residue(const Tensor& out, const Tensor& lse, Seen seen) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < out.tokens() * out.heads() * out.dim(); ++i) wrong += out.f32()[i] != 0;
  for (int64_t row = 0; row < lse.tokens(); ++row) {
    const double keys = static_cast<double>(seen(row));
    for (int64_t head = 0; head < lse.heads(); ++head) {
      const float value = lse.f32()[row * lse.heads() + head];
      wrong += keys == 0 ? value != -INFINITY : !(std::abs(value - std::log(keys)) < 1e-5);
    }
  }
  return wrong;
}

// Leaves the mark in what is kept of freed memory, in blocks of many sizes.
void MarkFreedMemory() {
  std::vector<Buffer> buffers;
  for (size_t size = 1024; size <= (size_t{4} << 20); size += std::max<size_t>(1024, size / 8)) {
    Buffer& buffer = buffers.emplace_back(size);
    std::fill_n(reinterpret_cast<float*>(buffer.data()), size / sizeof(float), kMark);
  }
}

TEST_CASE("what one tenant has let go of is in nothing that another one gets") {
  const bool device = GENERATE(false, true);
  const std::string backend = GENERATE("cpu", "reference");
  CAPTURE(device, backend);
  test::LocalCluster cluster({.workers = 2, .backend = backend, .fake_device = device});
  Tenant a(cluster.service(), "a", kMark);
  Tenant b(cluster.service(), "b", 0);
  int64_t answers = 0, residue = 0;
  for (int round = 0; round < 3; ++round) {
    const ContextId marked = a.Make();
    for (int layer = 0; layer < 2; ++layer) a.Append(marked, layer, 0, 1000);
    CHECK(a.Attend(marked, 1000, 300, "full")->out.f32()[0] == Approx(kMark));
    for (int64_t token = 1000; token < 1010; ++token)
      CHECK(a.Step(marked, token).status() == absl::OkStatus());
    CHECK(a.service.Call(TruncateRequest{marked, 500}, a.call).ok());
    CHECK(a.service.Call(ReleaseRequest{marked}, a.call).ok());
    MarkFreedMemory();

    const ContextId id = b.Make();
    for (const auto& [start, tokens] : {std::pair<int64_t, int64_t>{0, 1}, {1, 69}, {70, 330}}) {
      b.Append(id, 0, start, tokens);
      const int64_t kv_len = start + tokens;
      for (const int64_t q_tokens : {int64_t{1}, tokens}) {
        const int64_t first = kv_len - q_tokens;
        const auto look = [&](const std::string& pattern, auto seen) {
          const auto answer = b.Attend(id, kv_len, q_tokens, pattern);
          INFO(answer.status());
          REQUIRE(answer.ok());
          ++answers;
          residue += Residue(answer->out, answer->lse, seen);
        };
        look("causal", [&](int64_t row) { return first + row + 1; });
        look("full", [&](int64_t) { return kv_len; });
        look("window(50)", [&](int64_t row) { return std::min<int64_t>(50, first + row + 1); });
        look("sink(1) & window(1)", [&](int64_t row) { return first + row == 0 ? 1 : 0; });
      }
    }
    for (int64_t token = 400; token < 470; ++token) {
      const auto step = b.Step(id, token);
      REQUIRE(step.ok());
      ++answers;
      residue += Residue(step->out, step->lse, [&](int64_t) { return token + 1; });
    }
    // A fork that writes copies what is there, and a cut block is filled anew.
    const ContextId fork = b.service.Call(ForkRequest{id, 430}, b.call)->id;
    const auto step = b.Step(fork, 430);
    REQUIRE(step.ok());
    residue += Residue(step->out, step->lse, [](int64_t) { return 431; });
    CHECK(b.service.Call(ReleaseRequest{id}, b.call).ok());
    CHECK(b.service.Call(ReleaseRequest{fork}, b.call).ok());
  }
  CHECK(residue == 0);
  test::Tell({.number = 11,
              .fault = absl::StrCat("memory that another tenant has used, backend ", backend,
                                    device ? ", of a device" : ""),
              .load = absl::StrCat(answers, " answers over it"),
              .bar = "0 values of it",
              .figure = absl::StrCat(residue, " values"),
              .met = residue == 0});
}

TEST_CASE("rows that were let go of are read as zeros, whatever lay there") {
  KvStore store(int64_t{1} << 24);
  ContextSpec spec = Spec();
  const auto append = [&](ContextId id, int64_t start, int64_t tokens, float value) {
    const TokenRange range{start, start + tokens};
    const Tensor kv = Filled(tokens, 2, value);
    return store.Append(
        id, 0, range,
        PackAppend(spec, LayoutOf(spec, 1, range.end), 0, range, kv.view(), kv.view()));
  };
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(append(1, 0, 2000, kMark).ok());
  REQUIRE(store.Release(1).ok());
  MarkFreedMemory();
  spec.patterns = {"window(64)"};
  spec.kv_efficient = true;
  REQUIRE(store.Open(2, spec, 1, 0).ok());
  for (int64_t start = 0; start < 1000; start += 100) REQUIRE(append(2, start, 100, 0).ok());
  CHECK(store.evicted_bytes() > 0);
  const TokenRange all{0, 1000};
  Buffer rows(static_cast<size_t>(AppendBytes(spec, LayoutOf(spec, 1, 1000), 0, all)));
  std::fill_n(rows.data(), rows.size(), std::byte{0xAB});
  REQUIRE(store.Read(2, 0, all, rows.data()).ok());
  CHECK(std::count(rows.data(), rows.data() + rows.size(), std::byte{0}) ==
        static_cast<int64_t>(rows.size()));
}

}  // namespace
}  // namespace annulus
