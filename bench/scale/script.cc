#include "bench/scale/script.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace annulus {

Script::Script(int world, int rounds, std::vector<Message> messages, std::vector<double> compute_s,
               std::vector<double> merge_s)
    : world_(world),
      rounds_(rounds),
      messages_(std::move(messages)),
      compute_s_(std::move(compute_s)),
      merge_s_(std::move(merge_s)) {
  ANNULUS_CHECK(world >= 1 && world <= kScriptRanksMax);
  ANNULUS_CHECK(compute_s_.size() == Cell(rounds, 0) && merge_s_.size() == Cell(rounds, 0));
  ANNULUS_CHECK(messages_.size() <= std::numeric_limits<uint32_t>::max());
  sends_ = ListBy([](const Message& message) { return message.source; });
  receives_ = ListBy([](const Message& message) { return message.destination; });
}

Script Script::Of(const Plan& plan, const PlanLoads& loads, const ClusterModel& cluster) {
  const int world = plan.world();
  const int rounds = static_cast<int>(plan.rounds().size());
  std::vector<Message> messages;
  std::vector<double> compute_s, merge_s;
  for (int s = 0; s < rounds; ++s) {
    const Round& round = plan.rounds()[static_cast<size_t>(s)];
    std::vector<ComputeLoad> computed(static_cast<size_t>(world));
    std::vector<int64_t> arrived(static_cast<size_t>(world));  // rows of partials
    for (const Transfer& transfer : round.transfers) {
      ANNULUS_CHECK(transfer.source != kCaller && transfer.destination != kCaller);
      const int64_t bytes = plan.Bytes(transfer);
      if (bytes == 0) continue;
      messages.push_back({static_cast<int16_t>(transfer.source),
                          static_cast<int16_t>(transfer.destination), s, bytes});
      if (transfer.kind == Transfer::Kind::kPartial) {
        arrived[static_cast<size_t>(transfer.destination)] +=
            plan.problem().Rows(transfer.blocks) * transfer.heads.count;
      }
    }
    for (size_t c = 0; c < round.computes.size(); ++c) {
      computed[static_cast<size_t>(round.computes[c].rank)] += loads[static_cast<size_t>(s)][c];
    }
    for (size_t rank = 0; rank < computed.size(); ++rank) {
      compute_s.push_back(ComputeSeconds(cluster, plan.problem(), computed[rank]));
      merge_s.push_back(MergeSeconds(cluster, plan.problem(), arrived[rank]));
    }
  }
  return Script(world, rounds, std::move(messages), std::move(compute_s), std::move(merge_s));
}

template <typename RankOf>
Script::Lists Script::ListBy(RankOf rank_of) const {
  Lists lists;
  lists.begin.assign(compute_s_.size() + 1, 0);
  for (const Message& message : messages_) {
    ANNULUS_CHECK(message.round >= 0 && message.round < rounds_);
    ++lists.begin[Cell(message.round, rank_of(message)) + 1];
  }
  std::partial_sum(lists.begin.begin(), lists.begin.end(), lists.begin.begin());
  std::vector<uint32_t> at(lists.begin.begin(), lists.begin.end() - 1);
  lists.items.resize(messages_.size());
  for (size_t i = 0; i < messages_.size(); ++i) {
    const Message& message = messages_[i];
    lists.items[at[Cell(message.round, rank_of(message))]++] = static_cast<uint32_t>(i);
  }
  return lists;
}

}  // namespace annulus
