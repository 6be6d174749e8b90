// The grants of uploads alone, without any network.
#include "runtime/worker/grants.h"

#include <cstring>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "tests/catch.h"

namespace annulus {
namespace {

struct ManualClock final : Clock {
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch();
};

wire::ExpectUpload Expectation(uint64_t grant, int layer = 0, uint64_t bytes = 64) {
  wire::ExpectUpload expect;
  expect.work.request = grant;
  expect.work.time_left = absl::Seconds(30);
  expect.work.items = {{.epoch = 3, .storage_id = 7, .layer = layer, .k_tokens = 4}};
  expect.work.items[0].append_bytes = bytes;
  expect.secret = std::string(wire::kSecretBytes, static_cast<char>('a' + grant));
  expect.dtype = DType::kBF16;
  return expect;
}

// A table whose worker takes `room` tasks.
struct Fixture {
  explicit Fixture(int room_for = 100, int64_t bytes_max = 1000)
      : table(bytes_max, clock), room(room_for) {
    table.SetTake([this](WorkerTask& task) {
      if (room == 0) return false;
      --room;
      taken.push_back(std::move(task));
      return true;
    });
  }

  auto Claim(uint64_t grant, absl::Duration wait = absl::ZeroDuration(),
             const std::string& peer = "192.0.2.1") {
    return table.Claim(grant, Expectation(grant).secret, peer, wait, [this] { ++told; });
  }

  ManualClock clock;
  std::vector<WorkerTask> taken;
  GrantTable table;
  int room;
  int told = 0;  // uploads that were told to stop
};

void Fill(GrantTable::Upload& upload, char byte) {
  // Cut in the middle of a value.
  REQUIRE(upload.Add(std::string(33, byte)).ok());
  REQUIRE(upload.Add(std::string(31, byte)).ok());
}

}  // namespace

TEST_CASE("an upload becomes the append that was expected") {
  Fixture f;
  f.table.Add(Expectation(1));
  auto upload = f.Claim(1);
  REQUIRE(upload.ok());
  CHECK(f.table.upload_bytes() == 64);
  CHECK(absl::IsInvalidArgument((*upload)->Finish()));
  Fill(**upload, 5);
  CHECK(absl::IsInvalidArgument((*upload)->Add("x")));
  REQUIRE((*upload)->Finish().ok());
  upload->reset();
  REQUIRE(f.taken.size() == 1);
  const auto& work = std::get<wire::Work>(f.taken[0].body);
  CHECK(work.request == 1);
  CHECK(work.items.at(0).storage_id == 7);
  CHECK(work.items[0].epoch == 3);
  CHECK(f.taken[0].payload.size() == 64);
  CHECK(f.taken[0].payload.data()[63] == std::byte{5});
  CHECK(f.table.upload_bytes() == 64);  // until it is stored
  f.taken.clear();
  CHECK(f.table.upload_bytes() == 0);
  CHECK(f.told == 0);
}

TEST_CASE("grants that are unknown, used, over or another's are refused alike") {
  Fixture f;
  f.table.Add(Expectation(1));
  const auto refusal = [&](uint64_t grant, const std::string& secret) {
    const absl::Time begin = absl::Now();
    const auto claimed = f.table.Claim(grant, secret, "", absl::Milliseconds(30), [] {});
    CHECK(absl::Now() - begin >= absl::Milliseconds(30));
    CHECK(absl::IsPermissionDenied(claimed.status()));
    std::string message(claimed.status().message());
    const std::string number = std::to_string(grant);
    return message.replace(message.find(number), number.size(), "N");
  };
  const std::string unknown = refusal(2, Expectation(2).secret);
  CHECK(refusal(1, Expectation(2).secret) == unknown);
  CHECK(refusal(1, "") == unknown);
  CHECK(refusal(1, Expectation(1).secret + "x") == unknown);

  auto first = f.Claim(1);
  REQUIRE(first.ok());
  CHECK(absl::IsPermissionDenied(f.Claim(1).status()));  // used
  first->reset();                                        // given up
  CHECK(absl::IsPermissionDenied(f.Claim(1).status()));
  CHECK(f.table.upload_bytes() == 0);

  f.table.Add(Expectation(3));
  f.clock.now += absl::Seconds(31);
  CHECK(absl::IsPermissionDenied(f.Claim(3).status()));  // over
  CHECK(f.taken.empty());
}

TEST_CASE("a client may be faster than its coordinator") {
  Fixture f;
  std::thread coordinator([&] {
    absl::SleepFor(absl::Milliseconds(30));
    f.table.Add(Expectation(1));
  });
  CHECK(f.Claim(1, absl::Seconds(20)).ok());
  coordinator.join();
}

TEST_CASE("what is revoked can never be stored, and is told to stop") {
  Fixture f;
  for (const int layer : {0, 1}) f.table.Add(Expectation(static_cast<uint64_t>(layer) + 1, layer));
  auto first = f.Claim(1);
  auto second = f.Claim(2);
  REQUIRE((first.ok() && second.ok()));
  Fill(**first, 1);
  Fill(**second, 2);
  f.table.Revoke(7, 0);
  CHECK(f.told == 1);
  CHECK(absl::IsAborted((*first)->Finish()));
  f.table.Revoke(8, std::nullopt);  // another context
  CHECK((*second)->Finish().ok());
  CHECK(f.taken.size() == 1);

  f.table.Add(Expectation(3));
  f.table.Add(Expectation(4, 1));
  auto third = f.Claim(3);
  f.table.Revoke(7, std::nullopt);
  CHECK(f.told == 2);
  CHECK(absl::IsPermissionDenied(f.Claim(4).status()));
  third->reset();
  f.table.Add(Expectation(5));
  f.table.RevokeAll();
  CHECK(absl::IsPermissionDenied(f.Claim(5).status()));
}

TEST_CASE("an upload is refused where it has no room, and what is not finite everywhere") {
  Fixture f(/*room_for=*/0, /*bytes_max=*/200);
  for (const uint64_t grant : {1, 2, 3}) f.table.Add(Expectation(grant));
  auto first = f.Claim(1);
  REQUIRE(first.ok());
  const absl::Status full = f.Claim(2).status();
  CHECK(absl::IsResourceExhausted(full));
  CHECK(std::string(full.message()).find("upload_bytes_max: 200; ") != std::string::npos);
  CHECK(RetryAfter(full).has_value());

  Fill(**first, 0);
  CHECK(absl::IsResourceExhausted((*first)->Finish()));
  first->reset();
  CHECK(f.table.upload_bytes() == 0);

  auto bad = f.Claim(3);
  REQUIRE(bad.ok());
  const std::string infinity = "\x80\x7f";
  REQUIRE((*bad)->Add(std::string(62, '\0') + infinity[0]).ok());
  CHECK(absl::IsInvalidArgument((*bad)->Add(infinity.substr(1))));
  f.room = 1;
  f.table.Add(Expectation(4));
  bad->reset();
  auto orphan = f.Claim(4);
  f.table.SetTake({});
  Fill(**orphan, 0);
  CHECK(absl::IsUnavailable((*orphan)->Finish()));
}

TEST_CASE("uploads of one tenant, or else of one peer, take at most half of the bytes") {
  Fixture f(/*room_for=*/0, /*bytes_max=*/256);
  for (const uint64_t grant : {1, 2, 3, 4}) {
    wire::ExpectUpload expect = Expectation(grant);
    expect.tenant = grant == 4 ? "dogs" : "cats";
    f.table.Add(std::move(expect));
  }
  const auto at = [&f](uint64_t grant, const std::string& peer) {
    return f.Claim(grant, absl::ZeroDuration(), peer);
  };
  // From wherever they come: slow ones that keep what they have.
  auto first = at(1, "192.0.2.1");
  auto second = at(2, "192.0.2.2");
  REQUIRE((first.ok() && second.ok()));
  const absl::Status refused = at(3, "192.0.2.3").status();
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(refused.message() ==
        "upload_bytes_max: 256; this caller has 128, and at most half is one's, this upload needs "
        "64 more; try again later");
  CHECK(RetryAfter(refused).has_value());
  auto other = at(4, "192.0.2.1");
  CHECK(other.ok());
  first->reset();
  CHECK(at(3, "192.0.2.3").ok());
  second->reset();
  other->reset();

  // Where nobody shows a token.
  for (const uint64_t grant : {5, 6, 7, 8}) f.table.Add(Expectation(grant));
  auto fifth = at(5, "192.0.2.1");
  auto sixth = at(6, "192.0.2.1");
  REQUIRE((fifth.ok() && sixth.ok()));
  CHECK(absl::IsResourceExhausted(at(7, "192.0.2.1").status()));
  CHECK(at(8, "192.0.2.2").ok());
}

}  // namespace annulus
