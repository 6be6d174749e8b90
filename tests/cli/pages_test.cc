// The pages of coordinator and worker: what probes are told at each stage, and that whatever others
// have said shows as text.
#include <signal.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "runtime/cli/report/report.h"
#include "runtime/cli/report/status_page.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/rpc/scrape.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Program;
using test::Within;

struct Answer {
  int code = 0;
  std::string body;
};

Answer Get(int port, const std::string& path) {
  const std::string text = test::AskLoopback(port, test::HttpRequest("GET", path));
  REQUIRE(absl::StartsWith(text, "HTTP/1.1 "));
  return {std::atoi(text.c_str() + 9), text.substr(text.find("\r\n\r\n") + 4)};
}

TEST_CASE("probes are told how coordinator and worker stand") {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  const int at = coordinator.HttpPort();
  for (const char* path : {"/livez", "/startupz", "/readyz"}) CHECK(Get(at, path).code == 200);
  CHECK(Get(at, "/metrics").code == 200);
  CHECK(json::parse(Get(at, "/status.json").body)["workers"].empty());

  const std::string name = "<script>alert(1)</script>\x1b[31m";
  Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--name", name,
                  "--http-listen", "127.0.0.1:0", "--rejoin-s", "60"});
  const int worker_at = worker.HttpPort();
  CHECK(Within(absl::Seconds(20), [&] { return Get(worker_at, "/readyz").code == 200; }));
  CHECK(Get(worker_at, "/livez").code == 200);
  CHECK(json::parse(Get(worker_at, "/status.json").body)["state"] == "ready");
  CHECK(json::parse(Get(worker_at, "/status.json").body)["name"] == name);
  const std::string page = Get(worker_at, "/status").body;
  CHECK(!absl::StrContains(page, "<script"));
  CHECK(!absl::StrContains(page, "\x1b"));
  CHECK(absl::StrContains(page, "&lt;script&gt;alert(1)"));
  // A name goes to others escaped, to pages and terminals alike.
  const json status = json::parse(Get(at, "/status.json").body);
  REQUIRE(status["workers"].size() == 1);
  CHECK(status["workers"][0]["name"] == "<script>alert(1)</script>\\033[31m");
  CHECK(status["moves"]["running"] == 0);
  CHECK(status["workers_joined"] == 1);
  const std::string cluster = Get(at, "/status").body;
  CHECK(!absl::StrContains(cluster, "<script"));
  CHECK(absl::StrContains(cluster, "&lt;script&gt;alert(1)&lt;/script&gt;\\033[31m"));
  const test::Outcome table = test::RunProgram({"status", "--endpoint", endpoint});
  CHECK(absl::StrContains(table.out, " <script>alert(1)</script>\\033[31m "));
  CHECK(!absl::StrContains(table.out, "\x1b"));

  coordinator.Signal(SIGKILL);
  CHECK(Within(absl::Seconds(20), [&] { return Get(worker_at, "/readyz").code == 503; }));
  CHECK(Get(worker_at, "/readyz").body == "it is rejoining\n");
  CHECK(Get(worker_at, "/livez").code == 200);  // nobody should kill it, with its KV
}

TEST_CASE("a coordinator whose contexts wait for workers is alive and not ready") {
  const Arguments options = {"--http-listen", "127.0.0.1:0", "--recovery-s", "60"};
  const auto started = [&](const std::string& listen) {
    Arguments args = {"coordinator", "--listen", listen};
    args.insert(args.end(), options.begin(), options.end());
    return std::make_unique<Program>(args);
  };
  auto coordinator = started("127.0.0.1:0");
  const std::string endpoint = coordinator->ReadLine().substr(6);
  std::vector<std::unique_ptr<Program>> workers;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(std::make_unique<Program>(
        Arguments{"worker", "--coordinator", endpoint, "--threads", "1", "--rejoin-s", "60"}));
  }
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  REQUIRE(Within(absl::Seconds(20), [&] { return (*client)->Status()->workers.size() == 2; }));
  Rng rng(5);
  const test::Question question(rng);
  REQUIRE(question.Upload(**client).ok());

  coordinator->Signal(SIGKILL);
  coordinator->Wait();
  workers[1]->Signal(SIGKILL);
  coordinator = started(endpoint);
  const int at = coordinator->HttpPort();
  REQUIRE(Within(absl::Seconds(20), [&] {
    return test::ValueOf("\n" + Get(at, "/metrics").body, "annulus_contexts_recovering") == 1;
  }));
  CHECK(Get(at, "/livez").code == 200);  // whoever killed it now would lose the KV
  CHECK(Get(at, "/readyz").body == "1 contexts wait for workers to join again\n");
  CHECK(test::ValueOf("\n" + Get(at, "/metrics").body, "annulus_recovery_seconds") >= 0);
}

TEST_CASE("a worker that still looks for its coordinator is alive and not ready") {
  Program worker({"worker", "--coordinator", "127.0.0.1:1", "--http-listen", "127.0.0.1:0"});
  const int at = worker.HttpPort();
  CHECK(Get(at, "/livez").code == 200);
  CHECK(Get(at, "/startupz").code == 200);
  const Answer ready = Get(at, "/readyz");
  CHECK(ready.code == 503);
  CHECK(ready.body == "it is joining\n");
  CHECK(test::ValueOf("\n" + Get(at, "/metrics").body, "annulus_joined") == 0);
}

TEST_CASE("what workers say of themselves shows as text on the page") {
  ClusterStatus status;
  status.workers.push_back({.id = 1,
                            .state = "ready",
                            .backend = "<img src=x onerror=\"a()\">",
                            .address = "'&\x1b]0;x\x07",
                            .kv_bytes_limit = 0,
                            .data_address = "\"><b>",
                            .name = "<i>"});
  status.contexts.resize(1001);
  status.contexts[0].id = 9;
  status.contexts[0].spec.owner = "<u>\x1b";
  ClusterView view;
  view.places = {{9, {{1, 100}, {2, 50}}, {1, 1, 2, 0}}};
  const std::string page = StatusPage(status, view);
  CHECK(absl::StrContains(page, "width=\"10\" height=\"12\""));
  CHECK(absl::StrContains(page, "<title>worker 2</title>"));
  CHECK(absl::StrContains(page, "<title>nobody</title>"));
  CHECK(!absl::StrContains(page, "<script"));
  const json told = json::parse(ToJson(status, view));
  CHECK(told["block_map"][0]["parts"] == json({1, 1, 2, 0}));
  CHECK(told["block_map"][0]["holders"][1]["kv_bytes"] == 50);
  CHECK(told["workers"][0]["name"] == "<i>");
  for (const char* raw : {"<img", "<b>", "<i>", "<u>", "\x1b", "\x07"})
    CHECK(!absl::StrContains(page, raw));
  CHECK(absl::StrContains(page, "&lt;img src=x onerror=&quot;a()&quot;&gt;"));
  CHECK(absl::StrContains(page, "<p>1 more</p>"));
}

}  // namespace
}  // namespace annulus
