// Refusals are counted by the bound that they name.
#include "runtime/server/refusals.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"
#include "runtime/identity/quotas.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/server/admission.h"
#include "runtime/server/limits.h"
#include "tests/catch.h"
#include "tests/rpc/loopback.h"
#include "tests/rpc/raw_server.h"

namespace annulus {
namespace {

uint64_t CountOf(const std::vector<std::pair<absl::string_view, uint64_t>>& counts,
                 absl::string_view reason) {
  for (const auto& [name, count] : counts) {
    if (name == reason) return count;
  }
  FAIL("no reason " << reason);
  return 0;
}

TEST_CASE("the reason of a refusal is the first bound that its message names") {
  const auto reason = [](absl::string_view message) {
    return RefusalReason(absl::ResourceExhaustedError(message));
  };
  CHECK(reason("kv_bytes_limit: 64; 10 in use, this append needs 60 more") == "kv_bytes_limit");
  CHECK(reason("worker 3 (w): kv_bytes_limit: 64; 10 in use") == "kv_bytes_limit");
  CHECK(reason("table_bytes_max: 8 (an eighth of kv_bytes_limit); 8") == "table_bytes_max");
  CHECK(reason("in_flight_max: 4; 4 in use, this call needs 1 more; try again later") ==
        "in_flight_max");
  CHECK(reason("not_in_flight_max") == "other");
  CHECK(reason("the quota of the other; in_flight_maximum") == "other");
  CHECK(reason("") == "other");
  CHECK(RefusalReason(AboveQuota("contexts_max", 3, "in_flight_max", 3, 1)) == "quota");
  CHECK(RefusalReason(WithRetryAfter(AboveQuota("kv_bytes_max", 3, "t", 3, 1), absl::Seconds(1))) ==
        "quota");
}

TEST_CASE("when to try again crosses with the error, whatever its code") {
  Loopback loopback;
  for (const auto code : {absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted}) {
    loopback.service.before = [code](const char*, const CallContext&) {
      return WithRetryAfter(absl::Status(code, "soon"), absl::Seconds(2));
    };
    const absl::Status status = loopback.client->Status({.timeout = absl::Seconds(1)}).status();
    CHECK(status.code() == code);
    CHECK(RetryAfter(status) == absl::Seconds(2));
  }
}

TEST_CASE("what a server refuses is counted, whatever the form of the call") {
  RawServer raw({.in_flight_max = 1, .step_streams_max = 1, .short_calls_max = 1});
  CHECK(raw.server->Load().queue_wait.sum == 0);
  grpc::ClientContext one;
  const auto stream = raw.stub->Steps(&one);
  v1::StepBatch batch;
  v1::InlineTensor* q = batch.add_steps()->mutable_q();
  *q->mutable_shape() = Header("f32", 1, 1, 1).header().q();
  q->set_data(std::string(4, '\0'));
  v1::StepsReply reply;
  REQUIRE(stream->Write(batch));
  REQUIRE(stream->Read(&reply));
  const RpcLoad open = raw.server->Load();
  CHECK(open.step_streams == 1);
  CHECK(open.calls_waiting == 0);
  uint64_t observed = 0;
  for (const uint64_t count : open.queue_wait.counts) observed += count;
  CHECK(observed == 1);
  raw.service.before = [](const char*, const CallContext&) {
    return absl::ResourceExhaustedError(
        "contexts_max: 1; 1 in use, this context needs 1 more; release contexts");
  };
  v1::ContextRef context;
  v1::ContextInfo info;
  grpc::ClientContext describe;
  CHECK(!raw.stub->Describe(&describe, context, &info).ok());
  REQUIRE(stream->Write(batch));
  REQUIRE(stream->Read(&reply));
  const RpcLoad load = raw.server->Load();
  stream->WritesDone();
  while (stream->Read(&reply)) {
  }
  stream->Finish();
  std::set<absl::string_view> reasons;
  uint64_t all = 0;
  for (const auto& [reason, count] : load.refused) {
    reasons.insert(reason);
    all += count;
  }
  CHECK(reasons.size() == kRefusalReasons.size());
  CHECK(all == CountOf(load.refused, "contexts_max"));
  CHECK(all == 2);
}

TEST_CASE("every bound of a server is a reason") {
  Admission admission({.in_flight_max = 1, .short_calls_max = 1, .buffer_bytes_max = 2});
  Admission::Peer a(&admission, "a"), b(&admission, "b");
  Admission::Ticket first(&a), second(&b);
  REQUIRE(first.Enter({}).ok());
  REQUIRE(first.EnterShort().ok());
  REQUIRE(first.Reserve(1).ok());
  CHECK(RefusalReason(second.Enter({.deadline = absl::InfinitePast()})) == "in_flight_max");
  CHECK(RefusalReason(second.EnterShort()) == "short_calls_max");
  Admission::Ticket third(&b);
  REQUIRE(second.Reserve(1).ok());
  CHECK(RefusalReason(third.Reserve(1)) == "buffer_bytes_max");
  for (const char* name : {"transfers_max", "step_streams_max", "puts_max"}) {
    Places places(name, 1);
    Places::Place holds(&places), late(&places);
    grpc::ServerContext context;
    REQUIRE(holds.Take(&context, "a").ok());
    REQUIRE(holds.SetBusy(true));
    CHECK(RefusalReason(late.Take(&context, "b")) == name);
    CHECK(places.count() == 1);
  }
}

}  // namespace
}  // namespace annulus
