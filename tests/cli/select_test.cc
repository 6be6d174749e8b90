// Patterns that choose keys by data, in the program: attends in a process and in a service give the
// same, and a coordinator that starts anew finds the same choice.
#include <signal.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/cli/attend_files.h"
#include "tests/cli/question.h"

namespace annulus {
namespace {

using test::Outcome;
using test::Program;
using test::Question;
using test::RunHere;

constexpr const char* kPattern = "causal & (sink(4) | quest(64)) | moba(64,2)";
// For one query, too.
constexpr const char* kAllWords =
    "causal & (sink(4) | quest(64)) | moba(64,2) | nsa(2) | xattention(0.3,1,64) | biformer(4,9)";

TEST_CASE("attend chooses alike at every number of workers, and explain says that it needs data") {
  const Files files;
  std::vector<std::vector<float>> answers;
  for (const char* workers : {"1", "2", "3", "7"}) {
    const Outcome outcome = RunHere(files.Args({{"--pattern", kPattern}, {"--workers", workers}}));
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    answers.push_back(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim}));
    for (size_t i = 0; i < answers[0].size(); ++i) {
      REQUIRE(std::fabs(answers.back()[i] - answers[0][i]) < 1e-6);
    }
  }
  for (const char* word : {"minference(30,50) | window(3)", "flexprefill(0.4,0.1,1)"}) {
    std::vector<float> by_last;
    for (const char* workers : {"1", "4"}) {
      const Outcome outcome = RunHere(files.Args({{"--pattern", word}, {"--workers", workers}}));
      INFO(outcome.err);
      REQUIRE(outcome.code == 0);
      const auto out = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
      if (by_last.empty()) by_last = out;
      for (size_t i = 0; i < out.size(); ++i) REQUIRE(std::fabs(out[i] - by_last[i]) < 1e-6);
    }
  }
  const Outcome refused = RunHere(files.Args({{"--pattern", "causal & moba(65,2)"}}));
  CHECK(test::IsRefusal(refused));
  CHECK(absl::StrContains(refused.err, "at 15: 65; expected a divisor of 64"));
  const Outcome explained = RunHere({"explain", "--tokens", "1000", "--heads", "4", "--kv-heads",
                                     "2", "--head-dim", "16", "--pattern", "flexprefill(0.9)"});
  CHECK(test::IsRefusal(explained));
  CHECK(absl::StrContains(explained.err, "flexprefill(0.9,0.1,1024) chooses keys by data"));
}

TEST_CASE("what a pattern chooses is the same after the coordinator was killed and came back") {
  auto coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", "127.0.0.1:0", "--log-level", "warning"});
  const std::string endpoint = coordinator->ReadLine().substr(6);
  std::vector<std::unique_ptr<Program>> workers;
  for (int i = 0; i < 3; ++i) {
    workers.push_back(std::make_unique<Program>(
        Arguments{"worker", "--coordinator", endpoint, "--threads", "1"}));
  }
  ClientOptions options;
  options.endpoint = endpoint;
  options.retry = {.attempts_max = 100, .budget = 1000};
  const auto client = Client::Connect(options);
  REQUIRE(client.ok());
  REQUIRE(test::Within(absl::Seconds(20), [&] {
    const auto status = (*client)->Status();
    return status.ok() && status->workers.size() == 3;
  }));
  Rng rng(96);
  const Question question(rng);
  const auto context = question.Upload(**client);
  INFO(context.status());
  REQUIRE(context.ok());
  SelectRequest select{.context = *context,
                       .q_start = Question::kTokens - 1,
                       .kv_len = Question::kTokens,
                       .q = question.q,
                       .pattern = kAllWords};
  AttendRequest attend = question.Ask(*context);
  attend.pattern = kAllWords;
  const auto before = (*client)->Select(select);
  const auto answer = (*client)->Attend(attend);
  REQUIRE(before.ok());
  REQUIRE(answer.ok());
  for (const CallList& list : before->lists) {
    const CallList expected = test::ReferenceList(list.name, question.q, Question::kTokens - 1,
                                                  question.k, Question::kTokens);
    CHECK(list.data->keys == expected.data->keys);
  }
  coordinator->Signal(SIGKILL);
  CHECK(coordinator->Wait().code == 128 + SIGKILL);
  coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", endpoint, "--log-level", "warning"});
  REQUIRE(coordinator->ReadLine() == absl::StrCat("ready ", endpoint));
  const auto after = (*client)->Select(select);
  const auto again = (*client)->Attend(attend);
  INFO(after.status());
  REQUIRE(after.ok());
  REQUIRE(again.ok());
  REQUIRE(after->lists.size() == 5);
  for (size_t i = 0; i < 5; ++i) CHECK(after->lists[i].data->keys == before->lists[i].data->keys);
  for (int64_t i = 0; i < answer->out.view().size(); ++i) {
    REQUIRE(std::fabs(again->out.f32()[i] - answer->out.f32()[i]) < 1e-6);
  }
}

}  // namespace
}  // namespace annulus
