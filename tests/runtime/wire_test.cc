#include "runtime/wire/wire.h"

#include "base/rng.h"
#include "runtime/store/context_layout.h"
#include "tests/catch.h"

namespace annulus::wire {
namespace {

ContextSpec SomeSpec() {
  ContextSpec spec;
  spec.layers = 3;
  spec.heads = 8;
  spec.kv_heads = 4;
  spec.head_dim = 64;
  spec.v_head_dim = 32;
  spec.dtype = DType::kF16;
  spec.placement = Placement::kMesh;
  spec.partition = {PartitionKind::kContiguous, 1};
  spec.tokens_expected = 1000;
  return spec;
}

Step OneStep() {
  Step step;
  step.items = {{1, 2, 3, 4, 5, 6, 0.5f, "causal", 64, 32}};
  return step;
}

// As many bytes of tensors as the body speaks of.
Buffer TensorsOf(const Body& body) {
  size_t bytes = 0;
  if (const auto* step = std::get_if<Step>(&body)) {
    for (const StepItem& item : step->items) bytes += item.append_bytes + item.query_bytes;
  }
  return Buffer(bytes);
}

template <typename T>
T RoundTrip(const T& body) {
  absl::StatusOr<Body> back = Decode(Encode(body, TensorsOf(body)));
  REQUIRE(back.ok());
  REQUIRE(std::holds_alternative<T>(*back));
  return std::get<T>(*std::move(back));
}

TEST_CASE("Messages come back as they were") {
  const Hello hello = RoundTrip(Hello{kProtocol, "w\xff\n", "cpu", "local:w", 123});
  CHECK(hello.name == "w\xff\n");
  CHECK(hello.kv_bytes_limit == 123);
  CHECK(RoundTrip(Hello{kProtocol, "w", "cpu", "local:w", 1, 77, 5}).contexts == 5);
  CHECK(RoundTrip(Welcome{3, 77}).coordinator == 77);
  const LayerState layer{100, 64, {9, {5, 6}}, {64, 100}};
  const Inventory inventory = RoundTrip(Inventory{
      6, 7, SomeSpec(), 1, {"a", "b"}, std::vector<LayerState>(SomeSpec().layers, layer)});
  CHECK(inventory.layers.back() == layer);
  const std::vector<Copy> copies = {{0, "c"}};
  const Resume resume = RoundTrip(Resume{6, 7, {"a"}, {{5}, layer}, copies, 8, 9, true});
  CHECK(resume.layers == std::vector<LayerState>{{5}, layer});
  CHECK(resume.copies == copies);
  CHECK(resume.request == 8);
  CHECK(resume.serves == 9);
  CHECK(resume.tentative);
  CHECK(RoundTrip(Read{1, 2, 3, 4, 5, 6}).tokens == 6);
  CHECK(RoundTrip(Append{1, 2, 3, 0, 64, 10, {}, 0}).horizon == 0);
  CHECK(!RoundTrip(Append{1, 2, 3, 0, 64, 10}).horizon.has_value());
  CHECK(RoundTrip(Heartbeat{1, true}).leaves);
  CHECK(RoundTrip(HeartbeatSeen{true}).may_leave);
  CHECK(RoundTrip(Open{5, 6, 7, SomeSpec(), 0, {"a"}, copies}).copies == copies);
  const Open open = RoundTrip(Open{5, 6, 7, SomeSpec(), 1, {"a", std::string(5000, 'b')}});
  CHECK(open.rank == 1);
  CHECK(open.addresses[1].size() == 5000);
  CHECK(open.spec.partition == SomeSpec().partition);
  CHECK(open.spec.placement == Placement::kMesh);
  Attend attend{9, 8, 7, 2, PlanKind::kMesh, 10, 1000, "causal", 0.5f};
  attend.q_start = 2000;
  attend.keys = {10, 20};
  CHECK(RoundTrip(attend).time_left == absl::InfiniteDuration());
  attend.time_left = absl::Milliseconds(1500);
  attend.stages = 7;
  const Attend attend_back = RoundTrip(attend);
  CHECK(attend_back.time_left == absl::Milliseconds(1500));
  CHECK(attend_back.plan == PlanKind::kMesh);
  CHECK(attend_back.stages == 7);
  CHECK(attend_back.scale == 0.5f);
  const Done done = RoundTrip(Done{1, 2, absl::DataLossError(std::string(9999, 'x')), 3, 4, 5});
  CHECK(absl::IsDataLoss(done.status));
  CHECK(done.bytes_received == 5);
  CHECK(RoundTrip(Done{1, 2, {}, 3, 4, 5, {{"", "step", 10, 20}}}).spans.at(0).end_ns == 20);
  CHECK(RoundTrip(Release{1, 2, 3}).context == 3);
  CHECK(RoundTrip(Trim{1, 2, 3}).tokens == 3);
  CHECK(RoundTrip(Truncate{1, 2, 3, 4}).tokens == 4);
  const std::vector<int64_t> tokens(1024, int64_t{1} << 33);
  CHECK(RoundTrip(Fork{1, 2, 3, 4, tokens}).tokens == tokens);
  ContextSpec spec = SomeSpec();
  spec.patterns = {"causal", std::string(5000, ' ') + "full", "sink(3)"};
  spec.kv_efficient = true;
  const ContextSpec spec_back = RoundTrip(Open{5, 6, 7, spec, 0, {"a"}}).spec;
  CHECK(spec_back.patterns == spec.patterns);
  CHECK(spec_back.kv_efficient);
  Step step;
  step.items.assign(kStepsAtOnceMax, {1, 2, 3, 4, 5, 6, 0.5f, "window(7)", 16, 8});
  const Step step_back = RoundTrip(step);
  CHECK(step_back.items.size() == kStepsAtOnceMax);
  CHECK(step_back.items[9].pattern == "window(7)");
  StepDone step_done;
  step_done.items = {{absl::OkStatus(), 5}, {absl::AbortedError("x"), 6}};
  CHECK(absl::IsAborted(RoundTrip(step_done).items.at(1).status));
}

TEST_CASE("What is refused is named, with its value and what was expected") {
  const auto why = [](const Body& body) {
    return std::string(Decode(Encode(body, TensorsOf(body))).status().message());
  };
  Step step = OneStep();
  step.items.push_back(step.items[0]);
  step.items[1].layer = -1;
  CHECK(why(step) == "Step.items[1].layer: -1; expected 0 to 1023");
  Open open{5, 6, 7, SomeSpec(), 1, {"a"}};
  CHECK(why(open) == "Open.rank: 1; expected at most the last rank, 0");
  open.spec.kv_heads = 0;
  CHECK(why(open) == "Open.spec.kv_heads: 0; expected 1 to 1024");
  open.spec.kv_heads = 3;
  CHECK(why(open) == "Open.spec.heads: 8; expected a multiple of kv_heads 3 up to 4096");
  CHECK(why(Resume{}) == "Resume.addresses: 0 elements; expected 1 to 65536");
  Message odd = Encode(Read{1, 2, 3, 4, 5, 6});
  odd.body += '\x0b';  // the end of a group that never began
  CHECK(Decode(odd).status().message() == "Read: does not parse; expected protobuf");
}

TEST_CASE("A payload is the tensors alone, however long the body is") {
  Step step;
  step.items.assign(kStepsAtOnceMax, {1, 2, 3, 4, 5, 6, 0.5f, "causal", 16, 8});
  const Buffer tensors = TensorsOf(step);
  const Message message = Encode(step, tensors);
  CHECK(message.payload.data() == tensors.data());
  CHECK(message.payload.size() == size_t{kStepsAtOnceMax} * 24);
}

TEST_CASE("Damaged messages are refused, not believed") {
  const uint64_t seed = 11;
  Rng rng(seed);
  CAPTURE(seed);
  const std::vector<Body> bodies = {
      Hello{kProtocol, "w", "cpu", "local:w", 123},
      Open{5, 6, 7, SomeSpec(), 1, {"a", "b"}, {{0, "c"}, {1, "d"}}},
      Append{1, 2, 3, 0, 64, 10, {}, 64},
      Read{1, 2, 3, 0, 64, 10},
      Attend{.request = 9,
             .epoch = 8,
             .context = 7,
             .layer = 2,
             .plan = PlanKind::kMesh,
             .q_tokens = 1001,
             .kv_tokens = 1000,
             .pattern = "causal",
             .scale = 0.5f,
             .q_start = 5000,
             .keys = {3, 800}},
      Done{1, 2, absl::DataLossError("x"), 3, 4, 5},
      Done{1, 2, {}, 3, 4, 5, {{"", "step", 10, 20}}},
      Fork{1, 2, 3, 4, {5, 6}},
      Inventory{6, 7, SomeSpec(), 1, {"a", "b"}, std::vector<LayerState>(SomeSpec().layers)},
      Resume{6, 7, {"a"}, {{5}, {6}}},
      Open{5, 6, 7, SomeSpec(), 1, {"a", std::string(5000, 'b')}},
      OneStep()};
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const Body& sent = bodies[rng.Below(bodies.size())];
    Message message = Encode(sent, TensorsOf(sent));
    const uint64_t edits = rng.Between(1, 4);
    for (uint64_t e = 0; e < edits && !message.body.empty(); ++e) {
      message.body[rng.Below(message.body.size())] = static_cast<char>(rng.Next());
    }
    if (rng.Below(4) == 0) message.body.resize(rng.Below(message.body.size() + 1));
    if (rng.Below(4) == 0 && !message.payload.empty()) {
      message.payload.data()[rng.Below(message.payload.size())] =
          static_cast<std::byte>(rng.Next());
    }
    if (rng.Below(8) == 0 && message.payload.size() > 8) {
      message.payload = message.payload.Part(0, rng.Below(message.payload.size()));
    }
    if (rng.Below(8) == 0) message.type = static_cast<uint32_t>(rng.Below(20));
    const absl::StatusOr<Body> body = Decode(message);
    if (!body.ok()) {
      ++refused;
      REQUIRE(absl::IsInvalidArgument(body.status()));
    } else if (const auto* open = std::get_if<Open>(&*body)) {
      REQUIRE(open->rank < static_cast<int>(open->addresses.size()));
      for (const Copy& copy : open->copies) {
        REQUIRE(copy.rank >= 0);
        REQUIRE(copy.rank < static_cast<int>(open->addresses.size()));
      }
    } else if (const auto* attend = std::get_if<Attend>(&*body)) {
      REQUIRE(!Name(attend->plan).empty());
      REQUIRE(attend->stages <= kStagesMax);
      REQUIRE(attend->q_tokens >= 1);
      REQUIRE(attend->q_start >= 0);
      REQUIRE(attend->q_start + attend->q_tokens <= kContextTokensMax);
      REQUIRE(attend->keys.begin >= 0);
      REQUIRE(attend->keys.begin < attend->keys.end);
      REQUIRE(attend->keys.end <= attend->kv_tokens);
    } else if (const auto* step = std::get_if<Step>(&*body)) {
      size_t bytes = 0;
      for (const StepItem& item : step->items) bytes += item.append_bytes + item.query_bytes;
      REQUIRE(bytes == message.payload.size());
    }
  }
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace annulus::wire
