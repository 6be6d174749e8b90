// Runs a seeded simulation over many seeds, two at a time, and names the seeds that failed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/runtime/sim_session.h"

namespace annulus::test {

// How many seeds an ordinary run takes, and one that is instrumented, which takes many times as
// long for each.
struct SeedCounts {
  uint64_t usual = 0;
  uint64_t instrumented = 0;
};

struct SeedsRun {
  uint64_t seeds = 0;
  uint64_t failed = 0;
  Tally all;  // the sum over all seeds
};

// Adds what went wrong to `failures`. Called from several threads at once.
using Simulation = std::function<Tally(uint64_t seed, std::vector<std::string>* failures)>;

// Runs seeds 1 to N; a seed that adds failures fails the test. The environment's
// ANNULUS_<name>_SEEDS replaces N, and ANNULUS_<name>_SEED=S runs seed S alone.
SeedsRun RunSeeds(const std::string& name, SeedCounts counts, const Simulation& simulate);

}  // namespace annulus::test
