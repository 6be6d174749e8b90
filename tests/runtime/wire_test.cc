#include "runtime/protocol/cluster/wire.h"

#include "absl/strings/match.h"
#include "base/rng.h"
#include "runtime/context/layout.h"
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

// A decode step.
WorkItem OneItem(std::string pattern = "causal") {
  return {.epoch = 1,
          .storage_id = 2,
          .layer = 3,
          .start = 4,
          .k_tokens = 5,
          .append_bytes = 16,
          .q_start = 8,
          .q_tokens = 1,
          .kv_tokens = 9,
          .keys = {0, 9},
          .scale = 0.5f,
          .pattern = std::move(pattern),
          .query_bytes = 8};
}

Work Several(size_t count, std::string pattern = "causal") {
  Work work;
  work.items.assign(count, OneItem(std::move(pattern)));
  return work;
}

Work OnePlanned() {
  Work work = Several(1);
  WorkItem& item = work.items[0];
  item.k_tokens = 0;
  item.append_bytes = 0;
  item.q_start = 5000;
  item.q_tokens = 1001;
  item.kv_tokens = 1000;
  item.keys = {3, 800};
  item.plan = PlanKind::kMesh;
  item.stages = 7;
  item.channel = ~uint64_t{0};
  return work;
}

// As many bytes of tensors as the body speaks of.
Buffer TensorsOf(const Body& body) {
  size_t bytes = 0;
  if (const auto* work = std::get_if<Work>(&body)) {
    for (const WorkItem& item : work->items) bytes += item.append_bytes + item.query_bytes;
  }
  if (const auto* partials = std::get_if<Partials>(&body)) {
    for (const ItemPartial& item : partials->items) bytes += item.bytes;
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
  CHECK(resume.context == 9);
  CHECK(resume.activating);
  CHECK(RoundTrip(Read{1, 2, 3, 4, 5, 6}).tokens == 6);
  Work fill = Several(1);
  fill.items[0].horizon = 0;
  CHECK(RoundTrip(fill).items[0].horizon == 0);
  const ExpectUpload expect =
      RoundTrip(ExpectUpload{Several(1), std::string(kSecretBytes, 's'), DType::kF16, "cats"});
  CHECK(expect.work.items.at(0).append_bytes == 16);
  CHECK(expect.tenant == "cats");
  const Cancel cancel = RoundTrip(Cancel{5, {{6, 7}, {8, 9}}});
  CHECK(cancel.items == std::vector<ItemName>{{6, 7}, {8, 9}});
  const Partials partials = RoundTrip(Partials{5, {{{6, 7}, 24}, {{8, 9}, 0}}});
  CHECK(partials.items.at(0).item == ItemName{6, 7});
  CHECK(partials.items.at(0).bytes == 24);
  RoundTrip(LinkLost{});
  CHECK(RoundTrip(Heartbeat{1, true}).leaves);
  CHECK(RoundTrip(HeartbeatSeen{true}).may_leave);
  CHECK(RoundTrip(Open{5, 6, 7, SomeSpec(), 0, {"a"}, copies}).copies == copies);
  const Open open = RoundTrip(Open{5, 6, 7, SomeSpec(), 1, {"a", std::string(4000, 'b')}});
  CHECK(open.rank == 1);
  CHECK(open.addresses[1].size() == 4000);
  CHECK(open.spec.partition == SomeSpec().partition);
  CHECK(open.spec.placement == Placement::kMesh);
  Work planned = OnePlanned();
  CHECK(RoundTrip(planned).time_left == absl::InfiniteDuration());
  planned.time_left = absl::Milliseconds(1500);
  const Work planned_back = RoundTrip(planned);
  CHECK(planned_back.time_left == absl::Milliseconds(1500));
  CHECK(planned_back.items.at(0).plan == PlanKind::kMesh);
  CHECK(planned_back.items[0].stages == 7);
  CHECK(planned_back.items[0].scale == 0.5f);
  CHECK(planned_back.items[0].channel == ~uint64_t{0});
  const Done done = RoundTrip(Done{1, 2, absl::DataLossError(std::string(9999, 'x')), 3});
  CHECK(absl::IsDataLoss(done.status));
  CHECK(done.context_kv_bytes == 3);
  CHECK(RoundTrip(Release{1, 2, 3}).storage_id == 3);
  CHECK(RoundTrip(TruncateLayer{1, 2, 3}).tokens == 3);
  CHECK(RoundTrip(Truncate{1, 2, 3, 4}).tokens == 4);
  const std::vector<int64_t> tokens(1024, int64_t{1} << 33);
  CHECK(RoundTrip(Fork{1, 2, 3, 4, tokens}).tokens == tokens);
  ContextSpec spec = SomeSpec();
  spec.patterns = {"causal", std::string(5000, ' ') + "full", "sink(3)"};
  spec.kv_efficient = true;
  const ContextSpec spec_back = RoundTrip(Open{5, 6, 7, spec, 0, {"a"}}).spec;
  CHECK(spec_back.patterns == spec.patterns);
  CHECK(spec_back.kv_efficient);
  const Work work_back = RoundTrip(Several(kStepsAtOnceMax, "window(7)"));
  CHECK(work_back.items.size() == kStepsAtOnceMax);
  CHECK(work_back.items[9].pattern == "window(7)");
  CHECK(!work_back.items[9].plan.has_value());
  CHECK(!work_back.items[9].horizon.has_value());
  Work chooses = Several(1);
  chooses.items[0].chooses = true;
  CHECK(RoundTrip(chooses).items[0].chooses);
  WorkDone work_done;
  work_done.items = {{7, absl::OkStatus(), 5, 6, 8, {{"", "step", 10, 20}}},
                     {7, absl::AbortedError("x"), 6}};
  const WorkDone done_back = RoundTrip(work_done);
  CHECK(absl::IsAborted(done_back.items.at(1).status));
  CHECK(done_back.items[0].bytes_received == 8);
  CHECK(done_back.items[0].spans.at(0).end_ns == 20);
}

TEST_CASE("What is refused is named, with its value and what was expected") {
  const auto why = [](const Body& body) {
    return std::string(Decode(Encode(body, TensorsOf(body))).status().message());
  };
  Work work = Several(2);
  work.items[1].layer = -1;
  CHECK(why(work) == "Work.items[1].layer: -1; expected 0 to 1023");
  work.items[1] = OnePlanned().items[0];
  CHECK(why(work) == "Work.items[1].channel: not 0; expected an item alone in its message");
  const auto refuse_choice = [&](auto change) {
    Work chooses = Several(1);
    chooses.items[0].chooses = true;
    change(chooses.items[0]);
    CHECK(absl::StrContains(why(chooses), "chooses: set; expected queries, no plan, merges"));
  };
  refuse_choice([](WorkItem& item) { item.select = {"moba(64,3)"}; });
  refuse_choice([](WorkItem& item) { item.merges = 1; });
  refuse_choice([](WorkItem& item) { item.merge_into = 0; });
  refuse_choice([](WorkItem& item) { item.plan = PlanKind::kPassQ; });
  refuse_choice([](WorkItem& item) { item.column_trip = ColumnTrip::kSums; });
  refuse_choice([](WorkItem& item) { item.q_tokens = 0; });
  CHECK(why(ExpectUpload{Several(2), std::string(kSecretBytes, 's')}) ==
        "ExpectUpload.work.items: 2 elements; expected 1");
  Open open{5, 6, 7, SomeSpec(), 1, {"a"}};
  CHECK(why(open) == "Open.rank: 1; expected at most the last rank, 0");
  CHECK(why(Open{5, 6, 7, SomeSpec(), 0, {std::string(5000, 'b')}}) ==
        "Open.bytes of addresses: 5000; expected at most kTextBytesMax, 4096");
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
  const Work work = Several(kStepsAtOnceMax);
  const Buffer tensors = TensorsOf(work);
  const Message message = Encode(work, tensors);
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
      Several(2),
      ExpectUpload{Several(1), std::string(kSecretBytes, 's')},
      Read{1, 2, 3, 0, 64, 10},
      OnePlanned(),
      Done{1, 2, absl::DataLossError("x"), 3},
      WorkDone{1, {{2, {}, 3, 4, 5, {{"", "step", 10, 20}}}}},
      Fork{1, 2, 3, 4, {5, 6}},
      Inventory{6, 7, SomeSpec(), 1, {"a", "b"}, std::vector<LayerState>(SomeSpec().layers)},
      Resume{6, 7, {"a"}, {{5}, {6}}},
      Open{5, 6, 7, SomeSpec(), 1, {"a", std::string(4000, 'b')}},
      Several(1)};
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
    } else if (const auto* work = std::get_if<Work>(&*body)) {
      size_t bytes = 0;
      for (const WorkItem& item : work->items) {
        bytes += item.append_bytes + item.query_bytes;
        if (item.plan.has_value()) REQUIRE(!Name(*item.plan).empty());
        REQUIRE(item.stages <= kStagesMax);
        REQUIRE(item.q_start >= 0);
        if (item.q_tokens == 0) continue;
        REQUIRE(item.q_start + item.q_tokens <= kContextTokensMax);
        REQUIRE(item.keys.begin >= 0);
        REQUIRE(item.keys.begin < item.keys.end);
        REQUIRE(item.keys.end <= item.kv_tokens);
      }
      REQUIRE(bytes == message.payload.size());
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("an epoch that would wrap is refused") {
  Inventory inventory{uint64_t{1} << 62, 7, SomeSpec(), 1, {"a", "b"}, {}};
  inventory.layers.resize(SomeSpec().layers);
  CHECK(Decode(Encode(inventory)).ok());
  ++inventory.epoch;
  CHECK(absl::StrContains(Decode(Encode(inventory)).status().message(),
                          "epoch: 4611686018427387905"));
  inventory.epoch = ~uint64_t{0};
  CHECK(absl::IsInvalidArgument(Decode(Encode(inventory)).status()));
}

}  // namespace
}  // namespace annulus::wire
