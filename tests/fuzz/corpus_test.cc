// Every file that was kept, through its target: what fuzzing has reached stays reached, and what it
// found stays fixed.
#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/mapped_file.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFilesMax = 400;
constexpr size_t kFileBytesMax = 4096;

std::vector<std::vector<std::byte>> Corpus(absl::string_view name) {
  std::vector<std::vector<std::byte>> inputs;
  for (const fs::directory_entry& file : fs::directory_iterator(
           fs::path(ANNULUS_FUZZ_CORPUS) / std::string(name.data(), name.size()))) {
    const absl::StatusOr<MappedFile> mapped = MappedFile::Open(file.path().string());
    INFO(file.path());
    REQUIRE(mapped.ok());
    inputs.emplace_back(mapped->bytes().begin(), mapped->bytes().end());
    CHECK(inputs.back().size() <= kFileBytesMax);
  }
  return inputs;
}

TEST_CASE("every target takes its corpus, some accepted and some refused") {
  const auto& target = GENERATE(from_range(std::begin(kTargets), std::end(kTargets)));
  INFO(std::string(target.name.data(), target.name.size()));
  const std::vector<std::vector<std::byte>> inputs = Corpus(target.name);
  CHECK(inputs.size() <= kFilesMax);
  const auto accepted = std::count_if(inputs.begin(), inputs.end(),
                                      [&](const auto& input) { return target.run(input); });
  CHECK(accepted >= 5);
  CHECK(accepted < static_cast<std::ptrdiff_t>(inputs.size()));
}

TEST_CASE("every target takes its corpus spoilt") {
  const uint64_t seed = 17;
  INFO("seed " << seed);
  Rng rng(seed);
  for (const Target& target : kTargets) {
    const std::vector<std::vector<std::byte>> inputs = Corpus(target.name);
    for (int i = 0; i < 1000; ++i) {
      std::vector<std::byte> input = inputs[rng.Below(inputs.size())];
      for (uint64_t edit = rng.Below(4); edit > 0 && !input.empty(); --edit) {
        input[rng.Below(input.size())] = static_cast<std::byte>(rng.Next());
      }
      if (rng.Below(4) == 0) input.resize(rng.Below(input.size() + 1));
      target.run(input);
    }
  }
}

}  // namespace
}  // namespace annulus::fuzz
