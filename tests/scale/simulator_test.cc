#include "bench/scale/simulator.h"

#include <utility>
#include <vector>

#include "base/rng.h"
#include "bench/scale/script.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// Nodes of two ranks; inside 100 bytes/s and 1 s a message, between 10 bytes/s and 2 s.
ClusterModel Cluster() {
  ClusterModel cluster;
  cluster.workers_per_node = 2;
  cluster.inside_bytes_per_s = 100;
  cluster.inside_latency_s = 1;
  cluster.between_bytes_per_s = 10;
  cluster.between_latency_s = 2;
  return cluster;
}

Message Send(int step, int source, int destination, int64_t bytes) {
  return {static_cast<int16_t>(source), static_cast<int16_t>(destination), step, bytes};
}

// A script without merging.
Script Plain(int world, int steps, std::vector<Message> messages, std::vector<double> compute_s) {
  const size_t cells = compute_s.size();
  return Script(world, steps, std::move(messages), std::move(compute_s),
                std::vector<double>(cells));
}

void CheckRank(const RankTime& rank, double compute_s, double waiting_s, double idle_s) {
  CHECK(rank.compute_s == Approx(compute_s).margin(1e-12));
  CHECK(rank.waiting_s == Approx(waiting_s).margin(1e-12));
  CHECK(rank.idle_s == Approx(idle_s).margin(1e-12));
}

}  // namespace

TEST_CASE("one transfer takes its latency and its bytes over the link") {
  const SimulatedRun inside = Simulate(Plain(2, 1, {Send(0, 0, 1, 300)}, {0, 0}), Cluster());
  CHECK(inside.seconds == Approx(1 + 3.0));
  CheckRank(inside.ranks[0], 0, 4, 0);
  CheckRank(inside.ranks[1], 0, 4, 0);

  const SimulatedRun between = Simulate(Plain(3, 1, {Send(0, 0, 2, 300)}, {0, 0, 0}), Cluster());
  CHECK(between.seconds == Approx(2 + 30.0));
  CheckRank(between.ranks[1], 0, 0, 32);
}

TEST_CASE("a transfer hides behind its step's compute, and delays the next step beyond it") {
  const std::vector<Message> messages = {Send(0, 0, 1, 300)};  // 4 s
  const SimulatedRun hidden = Simulate(Plain(2, 2, messages, {5, 6, 1, 1}), Cluster());
  CHECK(hidden.seconds == Approx(7));
  CheckRank(hidden.ranks[0], 6, 0, 1);
  CheckRank(hidden.ranks[1], 7, 0, 0);

  const SimulatedRun exposed = Simulate(Plain(2, 2, messages, {3, 1, 1, 1}), Cluster());
  CHECK(exposed.seconds == Approx(5));
  CheckRank(exposed.ranks[0], 4, 1, 0);
  CheckRank(exposed.ranks[1], 2, 3, 0);
}

TEST_CASE("a sender's messages go one after the other, and so do a receiver's") {
  // Four nodes of one rank: each message takes 2 + 10 s.
  ClusterModel cluster = Cluster();
  cluster.workers_per_node = 1;
  const SimulatedRun scatter = Simulate(
      Plain(4, 1, {Send(0, 0, 1, 100), Send(0, 0, 2, 100), Send(0, 0, 3, 100)}, {0, 0, 0, 0}),
      cluster);
  CHECK(scatter.seconds == Approx(36));
  CheckRank(scatter.ranks[1], 0, 12, 24);
  CheckRank(scatter.ranks[2], 0, 24, 12);

  const SimulatedRun gather = Simulate(
      Plain(4, 1, {Send(0, 1, 0, 100), Send(0, 2, 0, 100), Send(0, 3, 0, 100)}, {0, 0, 0, 0}),
      cluster);
  CHECK(gather.seconds == Approx(36));
  CheckRank(gather.ranks[2], 0, 24, 12);
}

TEST_CASE("both directions, and both link classes, carry at the same time") {
  const SimulatedRun both_ways =
      Simulate(Plain(2, 1, {Send(0, 0, 1, 300), Send(0, 1, 0, 300)}, {0, 0}), Cluster());
  CHECK(both_ways.seconds == Approx(4));
  const SimulatedRun both_links =
      Simulate(Plain(4, 1, {Send(0, 0, 1, 300), Send(0, 0, 2, 20)}, {0, 0, 0, 0}), Cluster());
  CHECK(both_links.seconds == Approx(4));
}

TEST_CASE("a busy receiver does not hold up a sender that has other peers") {
  // All send to all, in the plan's order, which names rank 0 as the destination first.
  ClusterModel cluster = Cluster();
  cluster.workers_per_node = 8;
  std::vector<Message> messages;
  for (int to = 0; to < 8; ++to) {
    for (int from = 0; from < 8; ++from) {
      if (from != to) messages.push_back(Send(0, from, to, 100));  // 2 s
    }
  }
  const SimulatedRun run = Simulate(Plain(8, 1, messages, std::vector<double>(8)), cluster);
  CHECK(run.seconds == Approx(7 * 2));
}

TEST_CASE("a message waits until both ends have posted it, and pairs in order") {
  // Rank 1 comes to step 1 after 10 s; the message of step 1 takes 4 s.
  const SimulatedRun late = Simulate(Plain(2, 2, {Send(1, 0, 1, 300)}, {0, 10, 0, 0}), Cluster());
  CHECK(late.seconds == Approx(14));
  CheckRank(late.ranks[0], 0, 14, 0);
  CheckRank(late.ranks[1], 10, 4, 0);

  // The short message was posted after the long one, and arrives after it.
  const SimulatedRun ordered =
      Simulate(Plain(2, 1, {Send(0, 0, 1, 900), Send(0, 0, 1, 100)}, {0, 0}), Cluster());
  CHECK(ordered.seconds == Approx(10 + 2));
}

TEST_CASE("merging follows the transfers and delays the next step") {
  // Computing 1 s, the message 4 s, merging 2 s at rank 1.
  const Script script(2, 2, {Send(0, 0, 1, 300)}, {1, 1, 1, 1}, {0, 2, 0, 0});
  const SimulatedRun run = Simulate(script, Cluster());
  CHECK(run.seconds == Approx(4 + 2 + 1));
  CheckRank(run.ranks[0], 2, 3, 2);
  CheckRank(run.ranks[1], 4, 3, 0);
}

TEST_CASE("ranks without messages for each other do not wait for each other") {
  const SimulatedRun run = Simulate(Plain(2, 3, {}, {1, 5, 5, 1, 1, 5}), Cluster());
  CHECK(run.seconds == Approx(11));
  CheckRank(run.ranks[0], 7, 0, 4);
  CheckRank(run.ranks[1], 11, 0, 0);
}

TEST_CASE("the split names the cause: imbalance, bandwidth, latency") {
  const TimeSplit skewed = SimulateSplit(Plain(2, 1, {}, {2, 6}), Cluster());
  CHECK(skewed.compute_s == Approx(4));
  CHECK(skewed.imbalance_s == Approx(2));
  CHECK(skewed.bandwidth_s == Approx(0).margin(1e-12));
  CHECK(skewed.latency_s == Approx(0).margin(1e-12));

  const TimeSplit exposed = SimulateSplit(Plain(2, 1, {Send(0, 0, 1, 900)}, {2, 2}), Cluster());
  CHECK(exposed.compute_s == Approx(2));
  CHECK(exposed.imbalance_s == Approx(0).margin(1e-12));
  CHECK(exposed.bandwidth_s == Approx(7));
  CHECK(exposed.latency_s == Approx(1));
}

TEST_CASE("random scripts end, and every rank's time adds up to the whole") {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    INFO("seed " << seed);
    Rng rng(seed);
    const int world = static_cast<int>(rng.Between(2, 70)),
              steps = static_cast<int>(rng.Between(1, 5));
    std::vector<Message> messages;
    std::vector<double> compute_s;
    for (int step = 0; step < steps; ++step) {
      for (int64_t i = rng.Between(0, 3 * world); i > 0; --i) {
        const int source = static_cast<int>(rng.Below(static_cast<uint64_t>(world)));
        const int hop = static_cast<int>(1 + rng.Below(static_cast<uint64_t>(world) - 1));
        messages.push_back(Send(step, source, (source + hop) % world, rng.Between(1, 500)));
      }
      for (int rank = 0; rank < world; ++rank) {
        compute_s.push_back(static_cast<double>(rng.Between(0, 20)));
      }
    }
    const TimeSplit split = SimulateSplit(Plain(world, steps, messages, compute_s), Cluster());
    for (const RankTime& rank : split.run.ranks) {
      CHECK(rank.waiting_s >= 0);
      CHECK(rank.idle_s >= -1e-9);
      CHECK(rank.compute_s + rank.waiting_s + rank.idle_s == Approx(split.run.seconds));
    }
    CHECK(split.imbalance_s >= -1e-9);
    CHECK(split.compute_s + split.imbalance_s + split.bandwidth_s + split.latency_s ==
          Approx(split.run.seconds));
  }
}

}  // namespace annulus
