#include "runtime/worker/merge_point.h"

#include <cstring>

#include "base/check.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int64_t kRows = 2, kHeads = 3, kDim = 4;
const size_t kBytes = PartialBytes(kRows, kHeads, kDim);

PartialView ViewOf(Buffer& bytes, size_t at) {
  return PartialIn(bytes.data() + at, kRows, kHeads, kDim);
}

Buffer RandomPartials(size_t count, Rng& rng) {
  Buffer bytes(count * kBytes);
  for (size_t i = 0; i < count; ++i) {
    const PartialView view = ViewOf(bytes, i * kBytes);
    for (int64_t j = 0; j < kRows * kHeads * kDim; ++j) view.out[j] = rng.Normal();
    for (int64_t j = 0; j < kRows * kHeads; ++j) view.lse[j] = rng.Normal();
  }
  return bytes;
}

// An item of which a rank has a partial.
struct One {
  wire::ItemName name;
  int merges = 0;
  std::string next = {};  // the address of the rank that takes it; empty: the coordinator
  absl::Status status = {};
};

wire::Work WorkOf(const std::vector<One>& items) {
  wire::Work work{.request = 7, .items = {}};
  for (const One& one : items) {
    wire::WorkItem& item = work.items.emplace_back();
    item.storage_id = one.name.storage_id;
    item.layer = one.name.layer;
    item.merges = one.merges;
    if (!one.next.empty()) item.merge_into = 1;
  }
  return work;
}

OwnPartials OwnOf(const std::vector<One>& items, Buffer bytes) {
  OwnPartials own{{.request = 7, .items = {}}, bytes, {}};
  size_t at = 0;
  for (const One& one : items) {
    own.done.items.push_back({1, one.status});
    own.views.emplace_back();
    if (one.status.ok()) own.views.back() = {ViewOf(bytes, std::exchange(at, at + kBytes))};
    own.next.push_back(one.next);
  }
  ANNULUS_CHECK(at == bytes.size());
  return own;
}

wire::Partials PartialsOf(const std::vector<wire::ItemName>& names) {
  wire::Partials partials{7, {}};
  for (const wire::ItemName& name : names) partials.items.push_back({name, kBytes});
  return partials;
}

bool Same(const Buffer& a, const Buffer& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

// What a message to another worker says.
wire::Partials Read(const PeerMessage& to) {
  return std::get<wire::Partials>(wire::Decode(to.message).value());
}
wire::WorkDone ReadDone(const TaskOutcome& outcome) {
  REQUIRE(outcome.messages.size() == 1);
  return std::get<wire::WorkDone>(wire::Decode(outcome.messages[0]).value());
}

TEST_CASE("Work that nobody merges has no merge point") {
  CHECK(MergePoint::Of(WorkOf({{{1, 0}}, {{2, 0}}})) == nullptr);
}

TEST_CASE("What others have is merged, whether it comes before this rank's own or after") {
  Rng rng(1);
  const std::vector<One> items = {{{1, 0}, 2}, {{2, 5}, 0}, {{3, 0}, 1}};
  const Buffer first = RandomPartials(2, rng);  // of items 2 and 0
  const Buffer second = RandomPartials(1, rng);
  Buffer own = RandomPartials(3, rng);
  Buffer expected = Buffer::Copy(own.data(), own.size());
  Buffer from = Buffer::Copy(first.data(), first.size());
  const auto point = MergePoint::Of(WorkOf(items));
  const auto merge = [&](size_t item, Buffer& bytes, size_t at) {
    Merge(ViewOf(expected, item * kBytes), ViewOf(bytes, at * kBytes));
  };
  merge(2, from, 0);
  merge(0, from, 1);
  from = Buffer::Copy(second.data(), second.size());
  merge(0, from, 0);
  CHECK(point->AddOthers(PartialsOf({{3, 0}, {1, 0}}), first).messages.empty());
  CHECK(point->AddOwn(OwnOf(items, own)).messages.empty());
  const TaskOutcome last = point->AddOthers(PartialsOf({{1, 0}}), second);
  CHECK(last.request == 7);
  CHECK(last.to_peers.empty());
  CHECK(ReadDone(last).items.size() == 3);
  CHECK(Same(last.messages[0].payload, expected));
  // What comes twice, or too late, changes nothing.
  CHECK(point->AddOthers(PartialsOf({{1, 0}}), second).messages.empty());
  CHECK(Same(last.messages[0].payload, expected));
}

TEST_CASE("Each item goes on as soon as it is whole, one message for each rank") {
  Rng rng(2);
  const std::vector<One> items = {
      {{1, 0}, 0, "a"}, {{2, 0}, 1, "a"}, {{3, 0}, 0, "b"}, {{4, 0}, 0, "a"}, {{5, 0}, 0}};
  const Buffer own = RandomPartials(5, rng);
  const auto point = MergePoint::Of(WorkOf(items));
  const TaskOutcome now = point->AddOwn(OwnOf(items, own));
  CHECK(now.messages.empty());  // item 2 is not whole
  REQUIRE(now.to_peers.size() == 2);
  CHECK(now.to_peers[0].address == "a");
  const wire::Partials to_a = Read(now.to_peers[0]);
  REQUIRE(to_a.items.size() == 2);
  CHECK(to_a.items[1].item == wire::ItemName{4, 0});
  CHECK(Same(now.to_peers[0].message.payload.Part(kBytes, kBytes), own.Part(3 * kBytes, kBytes)));
  CHECK(now.to_peers[1].address == "b");
  CHECK(Same(now.to_peers[1].message.payload, own.Part(2 * kBytes, kBytes)));
  const TaskOutcome then = point->AddOthers(PartialsOf({{2, 0}}), RandomPartials(1, rng));
  REQUIRE(then.to_peers.size() == 1);
  CHECK(Read(then.to_peers[0]).items.at(0).item == wire::ItemName{2, 0});
  CHECK(then.request == 7);
  // Of all items only the last one's partial is for the coordinator.
  CHECK(Same(then.messages.at(0).payload, own.Part(4 * kBytes, kBytes)));
}

TEST_CASE("An item that failed is told on as failed, and the others go on") {
  Rng rng(3);
  const absl::Status full = absl::ResourceExhaustedError("full");
  const std::vector<One> items = {
      {{1, 0}, 1, "a", full}, {{2, 0}, 1, "a"}, {{3, 0}, 1, "a"}, {{4, 0}, 1}};
  const auto point = MergePoint::Of(WorkOf(items));
  const TaskOutcome now = point->AddOwn(OwnOf(items, RandomPartials(3, rng)));
  REQUIRE(now.to_peers.size() == 1);
  CHECK(Read(now.to_peers[0]).items.at(0).bytes == 0);
  CHECK(now.to_peers[0].message.payload.empty());
  // Item 2 failed at the rank that sends this; item 1's partial, which is of another size than
  // this rank's, none, does not shift the others.
  wire::Partials others = PartialsOf({{1, 0}, {2, 0}, {3, 0}, {4, 0}});
  others.items[1].bytes = 0;
  const TaskOutcome last = point->AddOthers(others, RandomPartials(3, rng));
  REQUIRE(last.to_peers.size() == 1);
  const wire::Partials to = Read(last.to_peers[0]);
  REQUIRE(to.items.size() == 2);
  CHECK(to.items[0].bytes == 0);
  CHECK(to.items[1].bytes == kBytes);
  const wire::WorkDone done = ReadDone(last);
  CHECK(done.items[0].status == full);
  CHECK(absl::IsAborted(done.items[1].status));
  CHECK(done.items[2].status.ok());
  CHECK(done.items[3].status.ok());
  CHECK(last.messages[0].payload.size() == kBytes);
}

TEST_CASE("Nothing is awaited of items that the coordinator drops, or of a foreign size") {
  Rng rng(4);
  using Names = std::vector<wire::ItemName>;
  const std::vector<One> items = {{{1, 0}, 1}, {{2, 0}, 1}, {{3, 0}, 1}};
  const auto point = MergePoint::Of(WorkOf(items));
  CHECK(point->Drop(Names{{2, 0}}).messages.empty());
  CHECK(point->AddOwn(OwnOf(items, RandomPartials(3, rng))).messages.empty());
  wire::Partials foreign{7, {{{3, 0}, kBytes / 2}}};
  CHECK(point->AddOthers(foreign, Buffer(kBytes / 2)).messages.empty());
  // Of another work's item, and of a context that is not there.
  CHECK(point->AddOthers(PartialsOf({{9, 0}, {1, 1}}), RandomPartials(2, rng)).messages.empty());
  const TaskOutcome last = point->Drop(Names{{1, 0}, {7, 7}});
  for (const wire::WorkItemDone& item : ReadDone(last).items) CHECK(absl::IsAborted(item.status));
  CHECK(last.messages[0].payload.empty());
  CHECK(point->Drop({}).messages.empty());
}

}  // namespace
}  // namespace annulus
