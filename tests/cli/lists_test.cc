// `annulus attend` and `explain` with lists from files.
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/cli/attend_files.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::RunHere;

// A mask of blocks [heads, blocks, blocks] as numpy writes it.
std::string NpyMask(int64_t heads, int64_t blocks, const std::vector<bool>& mask) {
  std::string header = absl::StrCat("{'descr': '|b1', 'fortran_order': False, 'shape': (", heads,
                                    ", ", blocks, ", ", blocks, "), }");
  header.append(63 - (10 + header.size()) % 64, ' ').push_back('\n');
  std::string file("\x93NUMPY\x01\x00", 8);
  file.push_back(static_cast<char>(header.size()));
  file.push_back('\0');
  file += header;
  for (const bool bit : mask) file.push_back(bit ? '\1' : '\0');
  return file;
}

template <typename Number>
std::string BytesOf(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

std::string ListTensors(const json& metadata, const std::vector<int64_t>& begin,
                        const std::vector<int32_t>& keys) {
  const size_t begin_bytes = 8 * begin.size();
  const json header = {
      {"__metadata__", metadata},
      {"begin", {{"dtype", "I64"}, {"shape", {begin.size()}}, {"data_offsets", {0, begin_bytes}}}},
      {"keys",
       {{"dtype", "I32"},
        {"shape", {keys.size()}},
        {"data_offsets", {begin_bytes, begin_bytes + 4 * keys.size()}}}}};
  const std::string text = header.dump();
  const std::vector<uint64_t> length = {text.size()};
  return BytesOf(length) + text + BytesOf(begin) + BytesOf(keys);
}

std::vector<bool> RandomMask(Rng& rng, int64_t bits) {
  std::vector<bool> mask;
  for (int64_t i = 0; i < bits; ++i) mask.push_back(rng.Below(3) == 0);
  return mask;
}

Arguments Explain(const std::string& list, const std::string& pattern) {
  return {"explain",
          "--tokens",
          absl::StrCat(kKvTokens),
          "--q-tokens",
          absl::StrCat(kTokens),
          "--heads",
          "4",
          "--kv-heads",
          "2",
          "--head-dim",
          "16",
          "--dtype",
          "f32",
          "--workers",
          "3",
          "--pattern",
          pattern,
          "--list",
          list,
          "--json"};
}

TEST_CASE("attend: a mask in a file and its list give what the mask says, for heads of each kind") {
  const Files files;
  Rng rng(3);
  for (const int64_t heads : {1, 2, 4}) {
    for (const int64_t block : {64, 50}) {
      const int64_t blocks = (kKvTokens + block - 1) / block;
      const std::vector<bool> mask = RandomMask(rng, heads * blocks * blocks);
      const std::string npy = files.folder / "mask.npy";
      test::WriteBytes(npy, NpyMask(heads, blocks, mask));
      const int64_t q_start = kKvTokens - kTokens;
      std::vector<int64_t> begin = {0};
      std::vector<int32_t> keys;
      int64_t visited = 0;
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = q_start / block; i < blocks; ++i) {
          for (int64_t j = 0; j < blocks; ++j) {
            if (mask[(h * blocks + i) * blocks + j]) keys.push_back(static_cast<int32_t>(j));
          }
          begin.push_back(static_cast<int64_t>(keys.size()));
        }
        for (int64_t q = q_start; q < kKvTokens; ++q) {
          for (int64_t k = 0; k <= q; ++k) {
            visited += mask[(h * blocks + q / block) * blocks + k / block] * (kHeads / heads);
          }
        }
      }
      const std::string tensors = files.folder / "list.safetensors";
      test::WriteBytes(tensors, ListTensors({{"unit", "blocks"},
                                             {"rows", "block"},
                                             {"block_tokens", absl::StrCat(block)}},
                                            begin, keys));
      std::vector<std::vector<float>> answers;
      for (const std::string& list :
           {block == 64 ? "x=" + npy : absl::StrCat("x=", npy, ":", block), "x=" + tensors}) {
        const Outcome outcome = RunHere(
            files.Args({{"--pattern", "list(x) & causal"}, {"--list", list}, {"--workers", "3"}}));
        CAPTURE(heads, block, list);
        INFO(outcome.err);
        REQUIRE(outcome.code == 0);
        const json report = json::parse(outcome.out);
        CHECK(report["visited_pairs"] == visited);
        CHECK(report["bytes_moved"] == report["planned_bytes"]);
        answers.push_back(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim}));
        const json explained = json::parse(RunHere(Explain(list, "list(x) & causal")).out);
        CHECK(explained["visited_pairs"] == visited);
        CHECK(explained["lists"][0]["name"] == "x");
        CHECK(explained["lists"][0]["heads"] == heads);
      }
      CHECK(answers[0] == answers[1]);
    }
  }
}

TEST_CASE("attend: two lists, and a list of tokens, are S2's answer in other words") {
  const Files files;
  const Outcome s2 = RunHere(files.Args({{"--pattern", "sink(3) | window(5)"}}));
  REQUIRE(s2.code == 0);
  const auto expected = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
  const std::string sink = files.folder / "sink.safetensors";
  const std::string window = files.folder / "window.safetensors";
  test::WriteBytes(sink, ListTensors({{"unit", "tokens"}, {"rows", "all"}}, {0, 3}, {0, 1, 2}));
  std::vector<int64_t> begin = {0};
  std::vector<int32_t> keys;
  for (int64_t q = kKvTokens - kTokens; q < kKvTokens; ++q) {
    for (int64_t k = q - 4; k <= q; ++k) keys.push_back(static_cast<int32_t>(k));
    begin.push_back(static_cast<int64_t>(keys.size()));
  }
  test::WriteBytes(window, ListTensors({{"unit", "tokens"}, {"rows", "token"}}, begin, keys));
  Arguments args = files.Args({{"--pattern", "list(a) | list(b)"}, {"--workers", "2"}});
  args.insert(args.end(), {"--list", "a=" + sink, "--list", "b=" + window});
  const Outcome listed = RunHere(args);
  INFO(listed.err);
  REQUIRE(listed.code == 0);
  const auto got = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
  for (size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - expected[i]) < 1e-5);
}

TEST_CASE("up: lists go with calls over the wire") {
  const Files files;
  Rng rng(4);
  test::Program up({"up", "--workers", "3", "--json", "--kv-bytes-limit", "64M"});
  const json ready = json::parse(up.ReadLine());
  const std::string endpoint = ready["endpoint"];
  const std::string npy = files.folder / "mask.npy";
  for (const int64_t heads : {1, 2, 4}) {
    test::WriteBytes(npy, NpyMask(heads, 6, RandomMask(rng, heads * 36)));
    std::map<std::string, std::string> options = {{"--pattern", "list(x) & causal"},
                                                  {"--list", "x=" + npy}};
    REQUIRE(RunHere(files.Args(options)).code == 0);
    const auto here = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
    for (const std::string plan : {"pass-q", "group-cast", "ring"}) {
      options["--plan"] = plan;
      options["--endpoint"] = endpoint;
      const Outcome outcome = RunHere(files.Args(options));
      CAPTURE(heads, plan);
      INFO(outcome.err);
      REQUIRE(outcome.code == 0);
      const auto there = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
      for (size_t i = 0; i < here.size(); ++i) REQUIRE(std::fabs(here[i] - there[i]) < 1e-5);
      const json report = json::parse(outcome.out);
      CHECK(report["bytes_moved"] == report["planned_bytes"]);
    }
  }
  const Outcome refused = RunHere(files.Args({{"--pattern", "list(x)"}, {"--endpoint", endpoint}}));
  CHECK(test::IsRefusal(refused));
}

TEST_CASE("explain: a mask is reported KV-efficient or not") {
  const Files files;
  std::vector<bool> mask;
  for (int64_t i = 0; i < 36; ++i) mask.push_back(i / 6 >= i % 6 && i / 6 - i % 6 < 2);
  const std::string npy = files.folder / "mask.npy";
  test::WriteBytes(npy, NpyMask(1, 6, mask));
  CHECK(json::parse(RunHere(Explain("x=" + npy, "list(x)")).out)["lists"][0]["kv_efficient"] ==
        true);
  mask[5 * 6] = true;  // the last row sees again what the row before did not
  test::WriteBytes(npy, NpyMask(1, 6, mask));
  CHECK(json::parse(RunHere(Explain("x=" + npy, "list(x)")).out)["lists"][0]["kv_efficient"] ==
        false);
}

TEST_CASE("attend: lists that cannot be are refused by file, field and value") {
  const Files files;
  const std::string npy = files.folder / "mask.npy";
  const std::string tensors = files.folder / "list.safetensors";
  const auto refused = [&](const std::string& list, const std::string& pattern,
                           absl::string_view why) {
    const Outcome outcome = RunHere(files.Args({{"--pattern", pattern}, {"--list", list}}));
    CAPTURE(list, outcome.err);
    REQUIRE(test::IsRefusal(outcome));
    CHECK(absl::StrContains(outcome.err, why));
  };
  refused("x", "list(x)", "expected NAME=F.npy");
  refused("x=a.npy:0", "list(x)", "BLOCK of \"x=a.npy:0\": \"0\"; expected");
  test::WriteBytes(npy, NpyMask(2, 5, std::vector<bool>(50)));
  refused("x=" + npy, "list(x)", "shape: 5 blocks; expected 6 for 330 tokens in blocks of 64");
  test::WriteBytes(npy, NpyMask(3, 6, std::vector<bool>(108)));
  refused("x=" + npy, "list(x)", "list x: heads: 3; expected 1, 2 (KV heads) or 4 (query heads)");
  refused("x=" + std::string(files.folder / "q.npy"), "list(x)", "expected '|b1' (bool)");
  test::WriteBytes(npy, NpyMask(1, 6, std::vector<bool>(36)));
  refused("y=" + npy, "list(x)", "lists: y; expected a name in a list(name) of the pattern: x");
  refused("x=" + npy, "list(x) | list(z)", "lists: no list z; expected one");
  test::WriteBytes(npy, NpyMask(1, 6, std::vector<bool>(35)));
  refused("x=" + npy, "list(x)", "data: 35 bytes; expected 36 for shape (1, 6, 6) of bool");
  const auto tensors_refused = [&](const json& metadata, const std::vector<int64_t>& begin,
                                   const std::vector<int32_t>& keys, absl::string_view why) {
    test::WriteBytes(tensors, ListTensors(metadata, begin, keys));
    refused("x=" + tensors, "list(x)", why);
  };
  const json all = {{"unit", "blocks"}, {"rows", "all"}};
  tensors_refused(all, {0, 2}, {3, 3}, "keys[1]: 3; expected more than keys[0], 3");
  tensors_refused(all, {0, 1}, {6}, "list x: keys[0]: 6; expected less than 6, the blocks");
  tensors_refused(all, {0, 1}, {-1}, "keys[0]: -1; expected 0 or more");
  tensors_refused(all, {0, 3}, {1}, "begin[1]: 3; expected at most the number of keys, 1");
  tensors_refused(all, {0, 1, 1, 1}, {0}, "tensor begin: 3 rows; expected 1 for each of 1, 2 or");
  tensors_refused({{"rows", "all"}}, {0, 1}, {0},
                  "__metadata__ unit: none; expected one of blocks");
  tensors_refused({{"unit", "pages"}, {"rows", "all"}}, {0, 1}, {0},
                  "\"unit\": \"pages\"; expected one of blocks, tokens");
  tensors_refused({{"unit", "blocks"}, {"rows", "all"}, {"blocktokens", "32"}}, {0, 1}, {0},
                  "\"blocktokens\": \"32\"; expected no field but unit, rows, block_tokens");
}

}  // namespace
}  // namespace annulus
