// Tenants of one service, as real processes: what one has the others cannot tell from what never
// was, by words or by time, and the coordinator's death changes nothing of it.
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/identity/signer.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

using test::Program;
using test::Question;
using test::Within;

// A coordinator that asks who calls, two workers, and clients of two tenants and an admin.
struct Cluster {
  explicit Cluster(const std::string& quotas_of_a) {
    Know(quotas_of_a);
    StartCoordinator("127.0.0.1:0");
    for (int i = 0; i < 2; ++i) {
      workers.push_back(
          std::make_unique<Program>(Arguments{"worker", "--coordinator", endpoint, "--threads", "1",
                                              "--token-file", folder.Write("worker", "worker")}));
    }
    REQUIRE(Within(absl::Seconds(30), [&] {
      const auto status = Of("admin").Status();
      return status.ok() && status->workers.size() == 2;
    }));
  }

  void Know(const std::string& quotas_of_a) const {
    const auto entry = [](const char* token, const char* tenant, const char* role) {
      return absl::StrCat(R"({"name":")", token, R"(","sha256":")", test::Sha256Hex(token),
                          R"(","tenant":")", tenant, R"(","role":")", role, R"("})");
    };
    folder.Write(
        "auth.json",
        absl::StrCat(R"({"tokens":[)", entry("of-a", "a", "tenant"), ",",
                     entry("of-b", "b", "tenant"), ",", entry("admin", "ops", "admin"), ",",
                     entry("worker", "", "worker"), R"(],"quotas":{"a":{)", quotas_of_a, "}}}"));
  }
  void StartCoordinator(const std::string& listen) {
    coordinator = std::make_unique<Program>(Arguments{
        "coordinator", "--listen", listen, "--log-level", "error", "--auth", folder / "auth.json",
        "--reload-s", "1", "--recovery-s", "3", "--audit-log", folder / "audit.log"});
    endpoint = coordinator->ReadLine().substr(6);
  }
  // Whoever has this token, always by one connection.
  Client& Of(const std::string& token) {
    std::unique_ptr<Client>& client = clients[token];
    if (client == nullptr) {
      ClientOptions options;
      options.endpoint = endpoint;
      options.retry.attempts_max = 1;
      options.token_file = folder.Write(absl::StrCat("token of ", token), token);
      client = Client::Connect(options).value();
    }
    return *client;
  }

  test::TempFolder folder;
  std::string endpoint;
  std::unique_ptr<Program> coordinator;
  std::vector<std::unique_ptr<Program>> workers;
  std::map<std::string, std::unique_ptr<Client>> clients;
};

constexpr ContextId kFarOn = 500'000;  // half of a coordinator's ids: so many are never made
constexpr char kAbsent[] = "NOT_FOUND: context ID does not exist";

// What a caller is told of a context, the id left out.
std::string Told(const absl::Status& status, ContextId id) {
  return absl::StrReplaceAll(status.ToString(), {{absl::StrCat("context ", id), "context ID"}});
}

// Every call that names a context.
struct Probes {
  explicit Probes(Client& client) : client(client) {}

  std::vector<std::pair<const char*, std::function<absl::Status(ContextId)>>> All() {
    return {{"Describe", [&](ContextId id) { return client.Describe(id).status(); }},
            {"KeepAlive", [&](ContextId id) { return client.KeepAlive({id})[0]; }},
            {"Release", [&](ContextId id) { return client.Release(id); }},
            {"Truncate",
             [&](ContextId id) {
               return client.Truncate({id, 0}).status();
             }},
            {"Fork",
             [&](ContextId id) {
               return client.Fork({id, {}}).status();
             }},
            {"Attend", [&](ContextId id) { return client.Attend(question.Ask(id)).status(); }},
            {"Append", [&](ContextId id) { return client.Append(AppendTo(id)).status(); }},
            {"Step", [&](ContextId id) {
               StepRequest step;
               step.context = id;
               step.start = Question::kTokens;
               step.q = question.q;
               return client.Step({&step, 1})[0].status();
             }}};
  }
  AppendRequest AppendTo(ContextId id) const {
    AppendRequest append;
    append.context = id;
    append.k = question.k.view().Tokens(0, 1);
    append.v = question.v.view().Tokens(0, 1);
    return append;
  }

  Client& client;
  Rng rng{1};
  Question question{rng};
};

absl::Duration Median(std::vector<absl::Duration> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

// Asks in turn for another's context and one that never was. The answers must be the same, and the
// medians of their times as near as those of two halves of the same.
void Probe(int probes) {
  Cluster cluster("");
  Rng rng(2);
  const ContextId of_a = Question(rng).Upload(cluster.Of("of-a")).value();
  const ContextId never = of_a + kFarOn;
  Probes as_b(cluster.Of("of-b"));
  const auto calls = as_b.All();
  int64_t told_apart = 0;
  for (const auto& [name, call] : calls) {
    INFO(name);
    const std::string expected = Told(call(never), never);
    CHECK(absl::StartsWith(expected, kAbsent));
    std::vector<absl::Duration> times[4];  // of another's, of none, each in two halves
    for (int i = 0; i < probes / static_cast<int>(calls.size()); ++i) {
      const bool first = rng.Below(2) == 0;  // so that no order favours one
      for (const bool others : {first, !first}) {
        const ContextId id = others ? of_a : never;
        const absl::Time begin = absl::Now();
        const absl::Status status = call(id);
        times[(others ? 0 : 2) + i % 2].push_back(absl::Now() - begin);
        told_apart += Told(status, id) != expected;
      }
    }
    const auto median = [&](int a, int b) {
      std::vector<absl::Duration> all = times[a];
      all.insert(all.end(), times[b].begin(), times[b].end());
      return absl::ToDoubleMicroseconds(Median(std::move(all)));
    };
    const auto apart = [](double a, double b) { return std::abs(a - b); };
    const double others = median(0, 1);
    const double none = median(2, 3);
    const double noise =
        std::max(apart(median(0, 0), median(1, 1)), apart(median(2, 2), median(3, 3)));
    WARN(name << ": another's " << others << " us, none " << none << " us, two halves of one "
              << noise << " us apart");
    CHECK(apart(others, none) <= 3 * noise + 0.1 * none);
  }
  CHECK(told_apart == 0);
  CHECK(cluster.Of("of-a").Describe(of_a)->tokens[0] == Question::kTokens);
  test::Tell({.number = 11,
              .fault = "another tenant's context is asked for",
              .load = absl::StrCat(probes, " times, and as often one that never was"),
              .bar = "0 told apart",
              .figure = absl::StrCat(told_apart, " told apart"),
              .met = told_apart == 0});
}

TEST_CASE("another tenant's context cannot be told from none") {
  Probe(1000);
}

TEST_CASE("another tenant's context cannot be told from none, often", "[.probes]") {
  Probe(50'000);
}

TEST_CASE("owners, quotas and denials are the same after the coordinator was killed") {
  Cluster cluster(R"("contexts_max":2,"kv_bytes_max":2000000)");
  Rng rng(3);
  const Question question(rng);
  const ContextId of_a = question.Upload(cluster.Of("of-a")).value();
  ContextSpec spec = Question::Spec(/*replicas=*/1);
  spec.owner = "a";  // its own
  REQUIRE(cluster.Of("of-a").CreateContext(spec).ok());
  const ContextId of_b = question.Upload(cluster.Of("of-b")).value();

  const auto seen = [&] {
    Client& a = cluster.Of("of-a");
    Client& b = cluster.Of("of-b");
    Client& admin = cluster.Of("admin");
    std::vector<std::string> lines;
    const auto add = [&](const absl::Status& status, ContextId id) {
      lines.push_back(Told(status, id));
    };
    add(a.CreateContext(Question::Spec(1)).status(), of_a);  // of contexts_max
    add(a.Fork({of_a, {}}).status(), of_a);
    add(b.CreateContext(spec).status(), of_a);  // not for another
    AppendRequest append = Probes(a).AppendTo(of_a);
    append.start = Question::kTokens;
    const Tensor many(DType::kF32, 4000, Question::kKvHeads, Question::kDim);
    append.k = append.v = many;
    add(a.Append(append).status(), of_a);  // of kv_bytes_max
    Probes probes(b);
    for (const auto& [name, call] : probes.All()) add(call(of_a), of_a);
    for (Client* client : {&a, &b, &admin}) {
      const auto list = client->List();
      if (!list.ok()) return std::vector<std::string>{list.status().ToString()};
      for (const ContextInfo& info : *list) {
        lines.push_back(absl::StrCat(info.id, " of ", info.spec.owner, ": ", info.tokens[0]));
      }
      const auto status = client->Status();
      if (!status.ok()) return std::vector<std::string>{status.status().ToString()};
      for (const TenantStatus& tenant : status->tenants) {
        lines.push_back(absl::StrCat(tenant.tenant, ": ", tenant.contexts, " contexts, ",
                                     tenant.kv_bytes, " bytes"));
      }
    }
    return lines;
  };
  const std::vector<std::string> before = seen();
  CAPTURE(before);
  REQUIRE(before.size() == 4 + 8 + 3 + 2 + 5);
  CHECK(before[0].find("contexts_max: 2 of tenant \"a\"") != std::string::npos);
  CHECK(before[1].find("contexts_max: 2 of tenant \"a\"") != std::string::npos);
  CHECK(before[2].find("PERMISSION_DENIED: owner: \"a\"") != std::string::npos);
  CHECK(before[3].find("kv_bytes_max") != std::string::npos);
  for (size_t i = 4; i < 12; ++i) CHECK(absl::StartsWith(before[i], kAbsent));

  cluster.coordinator->Signal(SIGKILL);
  CHECK(cluster.coordinator->Wait().code == 128 + SIGKILL);
  cluster.StartCoordinator(cluster.endpoint);
  // From the start: what it allowed too much would stay, and what it shows differ for good.
  std::vector<std::string> after;
  CHECK(Within(absl::Seconds(30), [&] { return (after = seen()) == before; }));
  CHECK(after == before);
  CHECK(question.IsRight(cluster.Of("of-a").Attend(question.Ask(of_a)).value()));
  CHECK(question.IsRight(cluster.Of("of-b").Attend(question.Ask(of_b)).value()));

  // Another quota holds without a restart.
  cluster.Know(R"("contexts_max":3)");
  CHECK(Within(absl::Seconds(20),
               [&] { return cluster.Of("of-a").CreateContext(Question::Spec(1)).ok(); }));
  CHECK(absl::IsResourceExhausted(cluster.Of("of-a").CreateContext(Question::Spec(1)).status()));

  // All of it was told, before and after the restart.
  const auto stranger =
      Client::Connect({.endpoint = cluster.endpoint,
                       .token_file = cluster.folder.Write("token of a stranger", "nobody's")});
  CHECK(!stranger.ok());
  // So many creates have used up what is told of a tenant in one second.
  absl::SleepFor(absl::Milliseconds(1200));
  CHECK(cluster.Of("of-a").Release(of_a).ok());
  const std::string audit = test::ReadBytes(cluster.folder / "audit.log");
  CAPTURE(audit);
  const auto told = [&](const std::string& line) { return absl::StrContains(audit, line); };
  const std::string by_a = "name=of-a tenant=a role=tenant client=ipv4:127.0.0.1:";
  CHECK(told(absl::StrCat("call=CreateContext context=", of_a, " outcome=OK ", by_a)));
  CHECK(told(absl::StrCat("call=CreateContext context=none outcome=RESOURCE_EXHAUSTED ", by_a)));
  CHECK(told(absl::StrCat("call=Release context=", of_a, " outcome=OK ", by_a)));
  for (const char* call : {"Describe", "KeepAlive", "Release", "Truncate", "Fork", "Attend"}) {
    INFO(call);
    CHECK(told(absl::StrCat("call=", call, " context=", of_a,
                            " outcome=NOT_FOUND name=of-b tenant=b role=tenant")));
  }
  CHECK(told("call=Join context=none outcome=OK name=worker"));
  CHECK(told("call=reload context=none outcome=OK"));
  CHECK(told("outcome=UNAUTHENTICATED name=\"\" tenant=\"\" role=none client=ipv4:127.0.0.1:"));
}

}  // namespace
}  // namespace annulus
