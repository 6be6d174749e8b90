// Clients that are killed: what they held is released once its lease has passed, and what others
// hold is not.
//
// ANNULUS_LEASE_CONTEXTS=N makes N contexts instead of a few hundred.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/child.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

using test::Program;
using test::Question;

constexpr double kLeaseS = 4;
constexpr int kClients = 4;
// A status is asked for every so often.
constexpr absl::Duration kLook = absl::Milliseconds(50);

ContextSpec SmallSpec() {
  ContextSpec spec;
  spec.heads = spec.kv_heads = 1;
  spec.head_dim = spec.v_head_dim = 8;
  spec.lease = kLeaseS;
  return spec;
}

// Reads "ENDPOINT COUNT", makes so many contexts with a token each, says "made" and waits.
TEST_CASE("child: a client with many contexts", "[.child]") {
  std::string line;
  REQUIRE(std::getline(std::cin, line));
  const std::vector<std::string> words = absl::StrSplit(line, ' ');
  int count = 0;
  REQUIRE(absl::SimpleAtoi(words.at(1), &count));
  const auto client = Client::Connect({.endpoint = words[0]});
  REQUIRE(client.ok());
  Rng rng(1);
  const Tensor k = test::NormalTensor(rng, 1, 1, 8);
  std::string first;
  for (int i = 0; i < count; ++i) {
    const auto context = (*client)->CreateContext(SmallSpec());
    REQUIRE(context.ok());
    REQUIRE((*client)->Append({.context = context->id, .k = k, .v = k}).ok());
    if (i == 0) first = absl::StrCat(context->id);
  }
  std::cout << "made " << first << std::endl;
  std::getline(std::cin, line);
}

int64_t KvBytes(const ClusterStatus& status) {
  int64_t bytes = 0;
  for (const WorkerStatus& worker : status.workers) bytes += worker.kv_bytes;
  return bytes;
}

TEST_CASE("contexts of clients that are killed end with their leases, and no others") {
  const auto wanted = static_cast<int>(test::NumberFromEnvironment("ANNULUS_LEASE_CONTEXTS", 400));
  Program up({"up", "--workers", "2", "--threads", "1", "--contexts-max", absl::StrCat(wanted + 8),
              "--kv-bytes-limit", "512M"});
  const std::string endpoint = up.ReadLine().substr(6);
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  // A context that its client keeps, one that nobody has to, and how they answer.
  Rng rng(7);
  Question question(rng);
  ContextSpec spec = Question::Spec(/*replicas=*/1);
  spec.lease = kLeaseS;
  std::vector<ContextId> ours;
  for (const double lease : {kLeaseS, 0.0}) {
    spec.lease = lease;
    const auto context = (*client)->CreateContext(spec);
    REQUIRE(context.ok());
    ours.push_back(context->id);
    REQUIRE((*client)->Append({.context = context->id, .k = question.k, .v = question.v}).ok());
  }
  absl::SleepFor(absl::Milliseconds(300));  // until heartbeats have told of it
  const int64_t kv_before = KvBytes(*(*client)->Status());

  const absl::Time begin = absl::Now();
  std::vector<std::unique_ptr<Child>> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<Child>("child: a client with many contexts"));
    clients.back()->WriteLine(absl::StrCat(endpoint, " ", wanted / kClients));
  }
  std::vector<ContextId> theirs;
  for (const auto& child : clients) {
    ContextId id = 0;
    REQUIRE(absl::SimpleAtoi(child->ReadLine("made "), &id));
    theirs.push_back(id);
  }
  const size_t made = static_cast<size_t>(wanted / kClients * kClients);
  const absl::Duration making = absl::Now() - begin;
  absl::SleepFor(absl::Seconds(1.5 * kLeaseS));
  REQUIRE((*client)->Status()->contexts.size() == made + ours.size());
  CHECK(KvBytes(*(*client)->Status()) > kv_before);

  // What one of them leaves is taken over by somebody who renews it.
  for (const auto& child : clients) child->Kill();
  const absl::Time killed = absl::Now();
  const ContextId taken_over = theirs.back();
  absl::Duration gone = absl::InfiniteDuration();
  while (absl::Now() - killed < absl::Seconds(kLeaseS + 20)) {
    CHECK((*client)->KeepAlive({&taken_over, 1})[0].ok());
    const auto status = (*client)->Status();
    REQUIRE(status.ok());
    if (status->contexts.size() == ours.size() + 1 &&
        KvBytes(*status) <= kv_before + (int64_t{1} << 16)) {
      gone = absl::Now() - killed;
      break;
    }
    absl::SleepFor(kLook);
  }
  const auto ended = (*client)->Describe(theirs.front());
  CHECK(absl::IsNotFound(ended.status()));
  CHECK(ended.status().message().find("its lease of 4 s passed") != std::string::npos);
  for (const ContextId context : ours) {
    const auto answer = (*client)->Attend(question.Ask(context));
    REQUIRE(answer.ok());
    CHECK(question.IsRight(*answer));
  }
  CHECK((*client)->Status()->contexts_expired == static_cast<int64_t>(made) - 1);
  const bool in_time = gone <= absl::Seconds(kLeaseS + 1) + 2 * kLook;
  CHECK(in_time);
  test::Tell({7, "clients with contexts are killed",
              absl::StrCat(made, " contexts in ", absl::FormatDuration(making)),
              "all KV back within lease + 1 s, others unaffected",
              absl::StrCat(absl::FormatDuration(gone), " after the kill, lease ", kLeaseS, " s"),
              in_time});
}

TEST_CASE("options of a coordinator bound what it holds") {
  Program up({"up", "--workers", "1", "--threads", "1", "--contexts-max", "2", "--json"});
  const std::string line = up.ReadLine();
  const size_t at = line.find("127.0.0.1:");
  const std::string endpoint = line.substr(at, line.find('"', at) - at);
  const auto client = Client::Connect({.endpoint = endpoint, .retry = {.attempts_max = 1}});
  REQUIRE(client.ok());
  REQUIRE((*client)->CreateContext(SmallSpec()).ok());
  REQUIRE((*client)->CreateContext(SmallSpec()).ok());
  const auto third = (*client)->CreateContext(SmallSpec());
  CHECK(absl::IsResourceExhausted(third.status()));
  CHECK(third.status().message().find("contexts_max: 2; ") != std::string::npos);
}

}  // namespace
}  // namespace annulus
