#include "tests/runtime/seeds.h"

#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "tests/catch.h"
#include "tests/reliability.h"

namespace annulus::test {
namespace {

constexpr int kThreads = 2;
constexpr size_t kShown = 10;  // failed seeds that are named

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif

}  // namespace

SeedsRun RunSeeds(const std::string& name, SeedCounts counts, const Simulation& simulate) {
  SetLogLevel(LogLevel::kOff);
  const std::string one = absl::StrCat("ANNULUS_", name, "_SEED");
  const uint64_t only = NumberFromEnvironment(one.c_str(), 0);
  const uint64_t first = only != 0 ? only : 1;
  SeedsRun run;
  run.seeds = only != 0 ? 1
                        : NumberFromEnvironment(absl::StrCat(one, "S").c_str(),
                                                kInstrumented ? counts.instrumented : counts.usual);
  std::atomic<uint64_t> next = first;
  std::mutex mutex;
  std::map<uint64_t, std::string> failed;  // the first failure of each seed
  const auto work = [&] {
    for (uint64_t seed = next++; seed < first + run.seeds; seed = next++) {
      std::vector<std::string> failures;
      const Tally tally = simulate(seed, &failures);
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failures.empty()) failed[seed] = failures.front();
      run.all += tally;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  run.failed = failed.size();
  size_t shown = 0;
  for (const auto& [seed, failure] : failed) {
    if (++shown > kShown) break;
    FAIL_CHECK("seed " << seed << " (" << one << "=" << seed << " replays it): " << failure);
  }
  CHECK(run.failed == 0);
  return run;
}

}  // namespace annulus::test
