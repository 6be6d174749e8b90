#include "bench/scale/script.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace annulus {

Script::Script(int world, int steps, std::vector<Message> messages, std::vector<double> compute_s,
               std::vector<double> merge_s)
    : world_(world),
      steps_(steps),
      messages_(std::move(messages)),
      compute_s_(std::move(compute_s)),
      merge_s_(std::move(merge_s)) {
  ANNULUS_CHECK(world >= 1 && world <= kScriptRanksMax);
  ANNULUS_CHECK(compute_s_.size() == Cell(steps, 0) && merge_s_.size() == Cell(steps, 0));
  ANNULUS_CHECK(messages_.size() <= std::numeric_limits<uint32_t>::max());
  sends_ = ListBy([](const Message& message) { return message.source; });
  receives_ = ListBy([](const Message& message) { return message.destination; });
}

Script Script::Of(const Plan& plan, const PlanLoads& loads, const ClusterModel& cluster) {
  const int world = plan.world();
  const int steps = static_cast<int>(plan.steps().size());
  std::vector<Message> messages;
  std::vector<double> compute_s, merge_s;
  for (int s = 0; s < steps; ++s) {
    const Step& step = plan.steps()[static_cast<size_t>(s)];
    std::vector<ComputeLoad> computed(static_cast<size_t>(world));
    std::vector<int64_t> arrived(static_cast<size_t>(world));  // rows of partials
    for (const Transfer& transfer : step.transfers) {
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
    for (size_t c = 0; c < step.computes.size(); ++c) {
      computed[static_cast<size_t>(step.computes[c].rank)] += loads[static_cast<size_t>(s)][c];
    }
    for (size_t rank = 0; rank < computed.size(); ++rank) {
      compute_s.push_back(ComputeSeconds(cluster, plan.problem(), computed[rank]));
      merge_s.push_back(MergeSeconds(cluster, plan.problem(), arrived[rank]));
    }
  }
  return Script(world, steps, std::move(messages), std::move(compute_s), std::move(merge_s));
}

template <typename RankOf>
Script::Lists Script::ListBy(RankOf rank_of) const {
  Lists lists;
  lists.begin.assign(compute_s_.size() + 1, 0);
  for (const Message& message : messages_) {
    ANNULUS_CHECK(message.step >= 0 && message.step < steps_);
    ++lists.begin[Cell(message.step, rank_of(message)) + 1];
  }
  std::partial_sum(lists.begin.begin(), lists.begin.end(), lists.begin.begin());
  std::vector<uint32_t> at(lists.begin.begin(), lists.begin.end() - 1);
  lists.items.resize(messages_.size());
  for (size_t i = 0; i < messages_.size(); ++i) {
    const Message& message = messages_[i];
    lists.items[at[Cell(message.step, rank_of(message))]++] = static_cast<uint32_t>(i);
  }
  return lists;
}

}  // namespace annulus
