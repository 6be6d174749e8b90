// Calls that make no sense, over every way to the service: the network with direct and with relayed
// uploads, and the service in this process. None ends the caller's process, all are refused with
// the same code in the same words, and what is right goes on working.
#include "tests/client/bad_calls.h"
#include "absl/strings/str_cat.h"

#include <sys/mman.h>

#include "tests/catch.h"
#include "tests/data/data_cluster.h"

namespace annulus::test {
namespace {

// A client with a context of 2 heads of 16 and kTokens tokens in each of 2 layers.
struct Caller {
  std::string name;
  std::unique_ptr<Client> client;
  ContextId context = 0;
};

struct Callers {
  Callers() {
    Add("direct", cluster.Connect(Upload::kDirect));
    Add("relay", cluster.Connect(Upload::kRelay));
    Add("in process", Client::InProcess({.workers = 1, .backend = "cpu", .threads = 1}).value());
  }
  void Add(std::string name, std::unique_ptr<Client> client) {
    const ContextId context = client->CreateContext(Spec()).value().id;
    for (const int layer : {0, 1}) {
      AppendRequest request{.context = context, .k = Rows(kTokens), .v = Rows(kTokens)};
      request.layer = layer;
      request.key = {7, 7};
      REQUIRE(client->Append(request).value().tokens == kTokens);
    }
    callers.push_back({std::move(name), std::move(client), context});
  }

  DataCluster cluster{{.workers = 1}};
  std::vector<Caller> callers;
};

// The contexts' own numbers are not the same everywhere.
std::string Words(const absl::Status& status, ContextId context) {
  std::string words(status.message().data(), status.message().size());
  for (const ContextId number : {context, context + 1000}) {
    const std::string id = absl::StrCat("context ", number);
    const size_t at = words.find(id);
    if (at != std::string::npos) words.replace(at, id.size(), "context N");
  }
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ", words);
}

TEST_CASE("what makes no sense is refused alike, by whichever way it goes") {
  Callers all;
  for (const auto& [name, call] : AllBadCalls()) {
    std::string first;
    for (const Caller& caller : all.callers) {
      INFO(name << ", " << caller.name);
      const absl::Status status = call(*caller.client, caller.context);
      REQUIRE_FALSE(status.ok());
      const std::string words = Words(status, caller.context);
      if (first.empty()) first = words;
      CHECK(words == first);
      const bool expected = absl::IsInvalidArgument(status) || absl::IsNotFound(status) ||
                            absl::IsDeadlineExceeded(status);
      CHECK(expected);
      CHECK(status.message().size() < 400);
    }
  }
  for (const Caller& caller : all.callers) {
    INFO(caller.name);
    CHECK(caller.client->Describe(caller.context).value().tokens ==
          std::vector<int64_t>{kTokens, kTokens});
    CHECK(Attend([](AttendRequest&) {})(*caller.client, caller.context).ok());
    CHECK(Step([](StepRequest&) {})(*caller.client, caller.context).ok());
    CHECK(Append([](AppendRequest&) {})(*caller.client, caller.context).ok());
    CHECK(caller.client->Release(caller.context).ok());
    const absl::Status after = Attend([](AttendRequest&) {})(*caller.client, caller.context);
    CHECK(absl::IsNotFound(after));
  }
}

TEST_CASE("a bad step fails alone, a repeated one with the one that it repeats") {
  Callers all;
  for (const Caller& caller : all.callers) {
    INFO(caller.name);
    const ContextId other = caller.client->Fork({.context = caller.context, .tokens = {}})->id;
    std::vector<StepRequest> steps(6);
    for (StepRequest& step : steps) {
      step.context = caller.context;
      step.start = kTokens;
      step.q = Rows();
    }
    steps[1].context = other;
    steps[1].q.dtype = static_cast<DType>(5);
    steps[2].layer = 1;
    steps[3].layer = 1;
    steps[3].k = steps[3].v = Rows();
    steps[4].context = caller.context + 1000;
    steps[5].context = other;
    steps[5].layer = 1;
    const StepResults results = caller.client->Step(steps);
    CHECK(results[0].ok());
    CHECK(results[1].status().message() == "requests[1].q.dtype: 5; expected f32, f16 or bf16");
    const auto repeated = [&](int index, int twin) {
      return absl::StrCat("requests[", index, "]: context ", caller.context,
                          " layer 1 is in requests[", twin,
                          "] too; expected each layer of a context once in a Step");
    };
    CHECK(results[2].status() == absl::InvalidArgumentError(repeated(2, 3)));
    CHECK(results[3].status() == absl::InvalidArgumentError(repeated(3, 2)));
    CHECK(absl::IsNotFound(results[4].status()));
    CHECK(results[5].ok());
    CHECK(caller.client->Describe(caller.context)->tokens == std::vector<int64_t>{6, 6});
    CHECK(caller.client->Step({}).empty());
  }
}

TEST_CASE("steps are cut where they are too many for one message, up to a bound") {
  Callers all;
  for (const Caller& caller : all.callers) {
    INFO(caller.name);
    ContextSpec spec = Spec();
    spec.layers = 1024;
    std::vector<StepRequest> steps;
    for (int i = 0; i < 5; ++i) {
      const ContextId context = caller.client->CreateContext(spec).value().id;
      for (int layer = 0; layer < spec.layers; ++layer) {
        StepRequest& step = steps.emplace_back();
        step.context = context;
        step.layer = layer;
        step.k = step.v = step.q = Rows();
      }
    }
    steps[3000].start = 5;
    const StepResults results = caller.client->Step(steps);
    REQUIRE(results.size() == steps.size());
    for (size_t i = 0; i < results.size(); ++i) {
      INFO(i << " " << results[i].status());
      REQUIRE(results[i].ok() == (i != 3000));
      if (i != 3000) REQUIRE(results[i]->tokens == 1);
    }
    CHECK(results[3000].status().message().find("start: 5; expected 0") == 0);

    steps.assign(kStepsMax + 1, steps[0]);
    const StepResults refused = caller.client->Step(steps);
    REQUIRE(refused.size() == steps.size());
    CHECK(refused[0].status() ==
          absl::InvalidArgumentError("requests: 65537 steps; expected at most 65536"));
  }
}

TEST_CASE("a call that is too large is refused as such") {
  Callers all;
  constexpr int64_t kRows = int64_t{9} << 20;  // of 128 bytes: 1,152 MiB
  void* memory =
      mmap(nullptr, kRows * 128, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  for (const Caller& caller : all.callers) {
    INFO(caller.name);
    const AttendRequest request{.context = caller.context,
                                .kv_len = kRows,
                                .q = TensorView::Contiguous(memory, DType::kF32, kRows, 2, 16)};
    CHECK(caller.client->Attend(request).status() ==
          absl::InvalidArgumentError("q: [9437184, 2, 16], 1207959552 bytes; expected at most "
                                     "1073741824 (request_bytes_max)"));
  }
  munmap(memory, kRows * 128);
}

TEST_CASE("options that make no sense are refused, however large") {
  const auto refused = [](const absl::Status& status, const char* text) {
    CAPTURE(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(status.message().find(text) == 0);
  };
  for (const int threads : {-1, 1025, 1 << 20, std::numeric_limits<int>::max()}) {
    refused(Client::InProcess({.threads = threads}).status(), "threads: ");
  }
  refused(Client::InProcess({.workers = 256, .threads = 5}).status(), "threads: 5; expected 0");
  refused(Client::InProcess({.workers = 257}).status(), "workers: 257");
  refused(Client::InProcess({.backend = std::string(1 << 20, 'x')}).status(), "backend: 'xxx");
  refused(Client::InProcess({.kv_bytes_limit = kMin}).status(), "kv_bytes_limit");
  for (const std::string endpoint : {"", ":", "host", "host:", ":1", "host:70000", "host:-1",
                                     "a:b:c", "a/b:1", "h\n:1", " :1"}) {
    CAPTURE(endpoint);
    refused(Client::Connect({.endpoint = endpoint}).status(), "endpoint: ");
  }
  refused(Client::Connect({.endpoint = std::string("h\0:1", 4)}).status(), "endpoint: ");
  refused(Client::Connect({.endpoint = "h:1", .connect_timeout = -absl::Seconds(1)}).status(),
          "connect_timeout: -1s; expected more than 0");
  refused(Client::Connect({.endpoint = "h:1", .chunk_bytes = 0}).status(), "chunk_bytes: 0");
  refused(Client::Connect({.endpoint = "h:1", .chunk_bytes = kMax}).status(), "chunk_bytes: ");
  refused(Client::Connect({.endpoint = "h:1", .upload = static_cast<Upload>(9)}).status(),
          "upload: 9; expected kDirect or kRelay");
}

}  // namespace
}  // namespace annulus::test
