// Lists in the messages of the public protocol: what is sent arrives, and what cannot be is refused
// before memory is taken for it.
#include "absl/strings/match.h"
#include "base/rng.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/key_lists.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "tests/attention/random_list.h"
#include "tests/catch.h"

namespace annulus {
namespace {

std::vector<CallList> Lists(Rng& rng) {
  std::vector<CallList> lists;
  for (const char* name : {"a", "b_2", "empty"}) {
    KeyListData data = MakeRandomList(rng, 2, 300, 300).data;
    if (lists.size() == 2) data = {.begin = {0, 0}, .keys = {}};
    lists.push_back({name, std::make_shared<const KeyListData>(std::move(data))});
  }
  lists[1].handle = NewListHandle();
  return lists;
}

void CheckSame(const std::vector<CallList>& got, const std::vector<CallList>& sent) {
  REQUIRE(got.size() == sent.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const KeyListData &a = *got[i].data, &b = *sent[i].data;
    CHECK(got[i].name == sent[i].name);
    CHECK(a.unit == b.unit);
    CHECK(a.rows == b.rows);
    CHECK(a.block_tokens == b.block_tokens);
    CHECK(a.heads == b.heads);
    CHECK(a.q_begin == b.q_begin);
    CHECK(a.begin == b.begin);
    CHECK(a.keys == b.keys);
    CHECK(got[i].handle == sent[i].handle);
  }
}

v1::AttendPart Header(const std::vector<CallList>& lists) {
  v1::AttendPart part;
  v1::TensorShape* q = part.mutable_header()->mutable_q();
  q->set_dtype("f32");
  q->set_tokens(1);
  q->set_heads(2);
  q->set_dim(8);
  ToProto(lists, /*with_data=*/false, part.mutable_header()->mutable_lists());
  return part;
}

TEST_CASE("lists: an Attend's arrive after its queries, however the bytes are cut") {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    const std::vector<CallList> lists = Lists(rng);
    int64_t admitted = 0;
    AttendReader reader({}, [&](const AttendRequest&, int64_t bytes) {
      admitted = bytes;
      return absl::OkStatus();
    });
    REQUIRE(reader.Add(Header(lists)).ok());
    CHECK(admitted == 64 + BytesOf(lists));
    std::string bytes(64, 'q');
    for (const absl::Span<const std::byte> data : DataOf(lists)) {
      bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    }
    while (!bytes.empty()) {
      const auto count = static_cast<size_t>(
          rng.Between(1, std::min<int64_t>(static_cast<int64_t>(bytes.size()), 700)));
      v1::AttendPart part;
      part.set_data(bytes.substr(0, count));
      bytes.erase(0, count);
      CHECK((bytes.empty() || !reader.Finish().ok()));
      REQUIRE(reader.Add(part).ok());
    }
    const auto request = reader.Finish();
    REQUIRE(request.ok());
    CheckSame(request->lists, lists);
    v1::AttendPart more;
    more.set_data("x");
    CHECK(absl::StrContains(reader.Add(more).message(), "q, index and lists: more bytes"));
  }
}

TEST_CASE("lists: a step brings its own") {
  Rng rng(5);
  StepRequest step;
  step.context = 7;
  step.lists = Lists(rng);
  step.sinks = {0.5f, -2};
  v1::StepBatch batch;
  ToProto({&step, 1}, &batch);
  CHECK(static_cast<int64_t>(batch.ByteSizeLong()) <= StepBytes(step));
  const auto got = FromProto(batch);
  REQUIRE(got.size() == 1);
  INFO(got[0].status());
  REQUIRE(got[0].ok());
  CheckSame(got[0]->lists, step.lists);
  CHECK(got[0]->sinks == step.sinks);
  batch.mutable_steps(0)->mutable_lists(0)->mutable_data()->pop_back();
  CHECK(absl::StrContains(FromProto(batch)[0].status().message(), "steps[0].lists[0].data: "));
}

TEST_CASE("lists: a handle may come alone, in a step and in an Attend") {
  Rng rng(7);
  std::vector<CallList> lists = Lists(rng);
  const auto whole = lists[1].data;
  lists[1].data = nullptr;
  StepRequest step;
  step.lists = lists;
  v1::StepBatch batch;
  ToProto({&step, 1}, &batch);
  CHECK(static_cast<int64_t>(batch.ByteSizeLong()) <= StepBytes(step));
  const auto got = FromProto(batch);
  REQUIRE(got[0].ok());
  CHECK(got[0]->lists[1].data == nullptr);
  CHECK(got[0]->lists[1].handle == lists[1].handle);
  int64_t admitted = 0;
  AttendReader reader({}, [&](const AttendRequest& request, int64_t bytes) {
    admitted = bytes;
    return absl::OkStatus();
  });
  REQUIRE(reader.Add(Header(lists)).ok());
  CHECK(admitted == 64 + BytesOf(lists));
  batch.mutable_steps(0)->mutable_lists(1)->set_data("x");
  CHECK(absl::StrContains(FromProto(batch)[0].status().message(),
                          "steps[0].lists[1].data: 1 bytes; expected 0"));
}

TEST_CASE("lists: what a header cannot declare is refused by field, before memory is taken") {
  Rng rng(6);
  const auto refused = [&](const std::function<void(v1::KeyList*)>& spoil, absl::string_view why) {
    v1::AttendPart part = Header(Lists(rng));
    spoil(part.mutable_header()->mutable_lists(1));
    bool admitted = false;
    AttendReader reader({}, [&](const AttendRequest&, int64_t) {
      admitted = true;
      return absl::OkStatus();
    });
    const absl::Status status = reader.Add(part);
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
    CHECK_FALSE(admitted);
  };
  refused([](v1::KeyList* l) { l->set_unit("pages"); },
          "lists[1].unit: \"pages\"; expected blocks");
  refused([](v1::KeyList* l) { l->set_rows(""); }, "lists[1].rows: ");
  refused([](v1::KeyList* l) { l->set_begin_count(-1); }, "lists[1].begin_count: -1");
  refused([](v1::KeyList* l) { l->set_key_count(int64_t{1} << 40); }, "list_keys_max");
  refused([](v1::KeyList* l) { l->set_key_count(int64_t{1} << 28); }, "request_bytes_max");
  refused([](v1::KeyList* l) { l->set_handle("short"); },
          "lists[1].handle: 5 bytes; expected 16 random bytes, or none");
  refused([](v1::KeyList* l) { l->set_handle(std::string(16, '\0')); }, "lists[1].handle: 16");
  v1::AttendPart many;
  many = Header({});
  for (int i = 0; i < 17; ++i) many.mutable_header()->add_lists();
  AttendReader reader({}, [](const AttendRequest&, int64_t) { return absl::OkStatus(); });
  CHECK(absl::StrContains(reader.Add(many).message(), "lists: 17; expected at most 16"));
}

}  // namespace
}  // namespace annulus
