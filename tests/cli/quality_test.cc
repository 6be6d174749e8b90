// `annulus quality`: what it measures is what the definitions say.
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/cli/quality/beyond.h"
#include "runtime/cli/quality/tasks.h"
#include "tests/catch.h"
#include "tests/cli/attend_files.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::IsRefusal;
using test::RunHere;

std::vector<json> RowsOf(const std::vector<std::string>& patterns,
                         const std::vector<std::string>& more) {
  std::vector<std::string> args = {"quality", "--json", "--repeat", "1"};
  for (const std::string& pattern : patterns) {
    args.push_back("--pattern");
    args.push_back(pattern);
  }
  args.insert(args.end(), more.begin(), more.end());
  const test::Outcome outcome = RunHere(args);
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  std::vector<json> rows;
  for (const auto line : absl::StrSplit(outcome.out, '\n', absl::SkipEmpty())) {
    rows.push_back(json::parse(line.begin(), line.end()));
  }
  return rows;
}

TEST_CASE("quality: what is found is what the pattern shows, by depth") {
  const std::vector<json> rows =
      RowsOf({"causal", "causal & window(256)", "s2(64,1,4)", "s2(64,1,4,dense_heads=1)",
              "heads(0: causal & sink(128); 1-3: causal & window(64))"},
             {"--tokens", "1K", "--q-tokens", "64"});
  REQUIRE(rows.size() == 5);
  for (const json& row : rows) {
    CAPTURE(row.dump());
    CHECK(row["needle_asked"] == 10);
    CHECK(row["needle_found"] == row["needle_seen"]);
    CHECK(row["mqar_asked"] == 128);
    // Heads that see few other words disturb one that sees the right one.
    CHECK(row["mqar_found"] <= row["mqar_seen"]);
    CHECK(10 * row["mqar_found"].get<int>() >= 9 * row["mqar_seen"].get<int>());
    CHECK(row["mqar_stray"] <= 1);
    CHECK(row["density"].get<double>() > 0);
    CHECK(row["mass"].get<double>() > 0);
    CHECK(row["mass"].get<double>() < 1 + 1e-6);
  }
  // Needles lie at 1024·(2d + 1)/20; the last query is that of token 1023.
  CHECK(rows[0]["needle_places"] == "++++++++++");
  CHECK(rows[1]["needle_places"] == ".......+++");
  CHECK(rows[2]["needle_places"] == "++++++++++");
  CHECK(rows[3]["needle_places"] == "++++++++++");
  CHECK(rows[4]["needle_places"] == "+........+");
  const json& dense = rows[0];
  CHECK(dense["density"] == 1.0);
  CHECK(dense["decode_bytes"] == 1.0);
  CHECK(std::abs(dense["mass"].get<double>() - 1) < 1e-6);
  CHECK(dense["error"].get<double>() < 1e-6);
  CHECK(dense["mqar_found"] == 128);
  CHECK(rows[2]["mqar_found"] == 128);
  // 64 queries, the last ones: those of tokens 960 to 1023 see 961 to 1024 keys.
  CHECK(std::abs(rows[1]["density"].get<double>() - 256 * 64 / ((961 + 1024) / 2.0 * 64)) < 1e-9);
  CHECK(rows[1]["decode_bytes"] == 0.25);
}

TEST_CASE("quality: a context that Compress makes smaller, beside dense attention") {
  const std::vector<json> rows = RowsOf(
      {"causal & window(128)"},
      {"--tokens", "1K", "--q-tokens", "64", "--heads", "4", "--kv-heads", "2", "--head-dim", "16",
       "--compress", "snapkv(1000)", "--compress", "snapkv(128)", "--compress", "h2o(128)"});
  REQUIRE(rows.size() == 4);
  for (const json& row : rows) {
    CAPTURE(row.dump());
    CHECK(row["kept"].is_null() == (row["pattern"] == "causal & window(128)"));
    CHECK(row["compress_steps"].is_null() == row["kept"].is_null());
    CHECK(row["speed"].is_null() == !row["kept"].is_null());
    CHECK(row["mqar_asked"].is_null() == !row["kept"].is_null());
    CHECK(row["needle_found"] <= row["needle_seen"]);
  }
  // The prompt has 1,024 − 32 tokens, so that all of it is kept.
  CHECK(rows[1]["kept"] == 992);
  CHECK(rows[1]["density"] == 1.0);
  CHECK(rows[1]["decode_bytes"] == 1.0);
  CHECK(std::abs(rows[1]["mass"].get<double>() - 1) < 1e-6);
  CHECK(rows[1]["error"].get<double>() < 1e-6);
  for (const size_t i : {2, 3}) {
    CAPTURE(rows[i].dump());
    CHECK(rows[i]["kept"] == 128);
    // 128 tokens and the 32 after them, of 1,024.
    CHECK(std::abs(rows[i]["decode_bytes"].get<double>() - 160.0 / 1024) < 1e-9);
    // What was chosen keeps more than the window does.
    CHECK(rows[i]["mass"] > rows[0]["mass"]);
    CHECK(rows[i]["mass"].get<double>() < 1);
    CHECK(rows[i]["error"] < rows[0]["error"]);
    CHECK(rows[i]["needle_seen"] > 8);
  }
}

TEST_CASE("quality: a word for prompts has no figures of steps") {
  const std::vector<json> rows =
      RowsOf({"minference(64,100)", "minference(1024,1024)", "flexprefill(0.5,min=1)"},
             {"--task", "mass", "--tokens", "1K", "--q-tokens", "128", "--heads", "4", "--kv-heads",
              "2", "--head-dim", "16"});
  REQUIRE(rows.size() == 3);
  for (const json& row : rows) {
    CAPTURE(row.dump());
    CHECK(row["decode_bytes"].is_null());
    CHECK(row["decode_speed"].is_null());
    CHECK(row["speed"].get<double>() > 0);
  }
  CHECK(rows[0]["density"].get<double>() < 0.6);
  for (const size_t i : {0, 2}) CHECK(rows[i]["mass"] > rows[i]["density"]);
  CHECK(std::abs(rows[1]["mass"].get<double>() - 1) < 1e-6);
}

TEST_CASE("quality: a word that needs many queries has no figures of what one asks") {
  const std::vector<json> rows =
      RowsOf({"xattention(0.95)"},
             {"--tokens", "1K", "--heads", "4", "--kv-heads", "2", "--head-dim", "32"});
  REQUIRE(rows.size() == 1);
  CAPTURE(rows[0].dump());
  CHECK(rows[0]["mass"].get<double>() > 0.8);
  CHECK(rows[0]["decode_speed"].is_null());
  CHECK(rows[0]["needle_asked"].is_null());
  CHECK(rows[0]["needle_places"].is_null());
  CHECK(rows[0]["mqar_asked"].get<int>() > 0);
}

TEST_CASE("quality: of captured rows, the weights and the error are those of the definition") {
  const Files files;
  const std::string pattern = "causal & (sink(2) | window(9))";
  const std::vector<json> rows =
      RowsOf({pattern}, {"--q", files.folder / "q.npy", "--k", files.folder / "k.npy", "--v",
                         files.folder / "v.npy"});
  REQUIRE(rows.size() == 1);
  const double scale = 1 / std::sqrt(static_cast<double>(kDim));
  const Expected dense = Attend(files.q, files.k, &files.v, kVDim, "causal", scale);
  const Expected sparse = Attend(files.q, files.k, &files.v, kVDim, pattern, scale);
  double mass = 0, difference = 0, length = 0;
  for (size_t i = 0; i < dense.lse.size(); ++i) mass += std::exp(sparse.lse[i] - dense.lse[i]);
  for (size_t i = 0; i < dense.out.size(); ++i) {
    difference += std::pow(sparse.out[i] - dense.out[i], 2);
    length += std::pow(dense.out[i], 2);
  }
  CHECK(std::abs(rows[0]["mass"].get<double>() - mass / static_cast<double>(dense.lse.size())) <
        1e-5);
  CHECK(std::abs(rows[0]["error"].get<double>() - std::sqrt(difference / length)) < 1e-5);
  CHECK(rows[0]["needle_asked"].is_null());
}

TEST_CASE("quality: MQAR asks for each key's value once, after the pairs") {
  const TaskShape shape = {.tokens = 2048, .heads = 2, .kv_heads = 1, .head_dim = 64};
  const RecallTask task = MakeMqarTask(shape, 5);
  REQUIRE(task.asking.size() == 1);
  const Asking& asking = task.asking[0];
  CHECK(asking.q.tokens() == 2048 - 512);
  CHECK(asking.questions.size() == 256);
  std::vector<bool> asked(512);
  int64_t near = 0;
  for (const Question& question : asking.questions) {
    REQUIRE((question.position % 2 == 1 && question.position < 512));
    CHECK(!asked[static_cast<size_t>(question.position)]);
    asked[static_cast<size_t>(question.position)] = true;
    near += question.row < 512;
    // The value is at its place, and its name is the key asked for, in all heads.
    const std::vector<float> value = WordValue(question.word, 64, 5);
    const auto* v = reinterpret_cast<const float*>(task.kv.v.view().Row(question.position, 0));
    CHECK(std::equal(value.begin(), value.end(), v));
    const auto* k = reinterpret_cast<const float*>(task.kv.k.view().Row(question.position, 0));
    for (int head = 0; head < 2; ++head) {
      const auto* q = reinterpret_cast<const float*>(asking.q.view().Row(question.row, head));
      CHECK(std::equal(k, k + 64, q));
    }
  }
  CHECK(near > 256 / 3);  // gaps are short more often than even ones would be
}

TEST_CASE("quality: a pair beyond another pattern is found wherever one is") {
  Rng rng(7);
  const std::vector<std::string> texts = {"full",
                                          "causal",
                                          "window(70,3)",
                                          "sink(9) & causal",
                                          "s2(64,1,3)",
                                          "causal & window(130) | sink(3)",
                                          "docs(100,150,50) & causal",
                                          "heads(0: causal; 1: causal & window(5))",
                                          "keys(100,103)"};
  for (const std::string& text : texts) {
    for (const std::string& other : texts) {
      CAPTURE(text, other);
      const Pattern pattern = Pattern::Parse(text, 2).value();
      const Pattern dense = Pattern::Parse(other, 2).value();
      const int64_t tokens = 200 + static_cast<int64_t>(rng.Below(100));
      const TokenRange queries = {static_cast<int64_t>(rng.Below(200)), tokens};
      bool beyond = false;
      for (int head = 0; head < 2; ++head) {
        for (int64_t q = queries.begin; q < queries.end; ++q) {
          for (int64_t k = 0; k < tokens; ++k) {
            beyond |= pattern.Allows(head, q, k) && !dense.Allows(head, q, k);
          }
        }
      }
      const std::optional<Pair> found = PairBeyond(pattern, dense, queries, tokens);
      REQUIRE(found.has_value() == beyond);
      if (!found.has_value()) continue;
      CHECK(pattern.Allows(found->kv_head, found->query, found->key));
      CHECK(!dense.Allows(found->kv_head, found->query, found->key));
      CHECK((queries.begin <= found->query && found->query < queries.end && found->key < tokens));
    }
  }
}

TEST_CASE("quality: refusals name what is wrong") {
  const auto refuses = [](const std::vector<std::string>& args, const std::string& words) {
    std::vector<std::string> all = {"quality", "--tokens", "1K"};
    all.insert(all.end(), args.begin(), args.end());
    const test::Outcome outcome = RunHere(all);
    INFO(outcome.err);
    CHECK(IsRefusal(outcome));
    CHECK(absl::StrContains(outcome.err, words));
  };
  refuses({"--task", "mass,haystack"}, "haystack");
  refuses({"--heads", "6"}, "heads: 6; expected a multiple of kv_heads 4");
  refuses({"--pattern", "causal & windo(3)"}, "windo");
  refuses({"--pattern", "causal & list(x)"}, "list");
  refuses({"--dense", "causal & keys(1023)", "--task", "mass", "--q-tokens", "2"},
          "dense: \"causal & keys(1023)\" shows row 0 of head 0 no key");
  // The first of 1,024 queries.
  refuses({"--dense", "causal & window(10)", "--pattern", "causal", "--task", "mass"},
          "pattern: \"causal\" shows query 10 of KV head 0 key 0; expected none that dense "
          "\"causal & window(10)\" does not show");
  refuses({"--dense", "window(10)", "--pattern", "full"},
          "\"full\" shows query 0 of KV head 0 key 1");
  refuses({"--dense", "heads(0-2: causal; 3: causal & window(900))", "--pattern", "causal"},
          "shows query 900 of KV head 3 key 0;");
  refuses({"--pattern", "causal", "--pattern", "causal & window(9) | keys(1000)"},
          "\"causal & window(9) | keys(1000)\" shows query 0 of KV head 0 key 1000;");
  refuses({"--dense", "causal & window(1000)", "--compress", "h2o(64)", "--task", "mass"},
          "compress: \"h2o(64)\" may show query 1000 of KV head 0 key 0;");
  refuses({"--q-tokens", "2K"}, "q-tokens: 2048; expected 1 to the 1024 of the context");
  refuses({"--compress", "snapkv"}, "expected snapkv(KEEP) or h2o(KEEP)");
  refuses({"--compress", "h2o(0)"}, "expected an integer from 1");
  refuses({"--compress", "h2o(9)", "--q-tokens", "1", "--task", "mass"},
          "tokens of q: 1; expected 2 or more for h2o(9)");
  refuses({"--q", "nothing.npy"}, "--tokens");
  const test::Outcome alone = RunHere({"quality", "--q", "nothing.npy"});
  CHECK(IsRefusal(alone));
  CHECK(absl::StrContains(alone.err, "--k: none; expected"));

  // Files of several dtypes are one problem only where they are rounded to one.
  const test::TempFolder folder;
  Rng rng(1);
  const auto write = [&](const char* name, DType dtype) {
    const std::string path = folder / name;
    test::WriteBytes(path, test::TestTensor::Random(rng, dtype, {64, 2, 16}).Npy());
    return path;
  };
  const std::vector<std::string> files = {"quality",
                                          "--pattern",
                                          "causal",
                                          "--q",
                                          write("q.npy", DType::kF16),
                                          "--k",
                                          write("k.npy", DType::kF32),
                                          "--v",
                                          write("v.npy", DType::kF32)};
  const test::Outcome mixed = RunHere(files);
  CHECK(IsRefusal(mixed));
  CHECK(absl::StrContains(mixed.err,
                          "dtypes of the files: f16 and f32; expected one dtype or --dtype"));
  std::vector<std::string> rounded = files;
  rounded.insert(rounded.end(), {"--dtype", "f32"});
  CHECK(RunHere(rounded).code == 0);
  std::vector<std::string> asked = files;
  asked.insert(asked.end(), {"--task", "needle"});
  CHECK(absl::StrContains(RunHere(asked).err, "--task"));
}

}  // namespace
}  // namespace annulus
