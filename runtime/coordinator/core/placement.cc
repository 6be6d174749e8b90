#include "runtime/coordinator/core/placement.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "annulus/retry_hint.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"

namespace annulus {

namespace {

// Parts of a worker's limit that differ by less are the same.
constexpr double kSameLoad = 1e-9;
// After which a worker that is about to join may have.
constexpr absl::Duration kJoinWait = absl::Seconds(1);

// What a context will take first, by rank: its first unit of tokens. Of tracks that is rank 0's.
std::vector<std::pair<int, double>> FirstBytes(const ShardMap& map) {
  const ContextSpec& spec = map.spec;
  const Layout layout = map.layout(0, 0);
  const MeshShape mesh = layout.mesh();
  int64_t blocks = spec.partition.unit_blocks;
  if (spec.partition.kind != PartitionKind::kBlockCyclic) {
    blocks = (BlocksOf(spec.tokens_expected) + mesh.token_groups - 1) / mesh.token_groups;
  } else if (spec.tokens_expected > 0) {
    blocks = std::min(blocks, BlocksOf(spec.tokens_expected));
  }
  const double layers_blocks = static_cast<double>(blocks) * spec.layers;
  const double head_bytes = static_cast<double>(PageBytes(spec)) * layers_blocks;
  std::vector<std::pair<int, double>> first;
  for (int group = 0; group < mesh.head_groups; ++group) {
    const int rank = layout.Rank(group, 0);
    const int heads = CountOf(layout.KvHeads(rank));
    if (heads > 0) first.emplace_back(rank, head_bytes * heads);
  }
  if (map.tracks.empty()) return first;
  if (first.empty() || first[0].first != 0) first.insert(first.begin(), {0, 0.0});
  for (const ContextSpec& track : map.tracks) {
    first[0].second += static_cast<double>(PageBytes(track) * track.kv_heads) * layers_blocks;
  }
  return first;
}

double ShareOf(const Member& member, double bytes) {
  return bytes / static_cast<double>(std::max<int64_t>(1, member.status.kv_bytes_limit));
}

}  // namespace

Loads::Loads(const Members& members, const std::map<ContextId, Context>& contexts)
    : members_(members) {
  for (const auto& [peer, id] : members.links()) {
    const Member& member = members.at(id);
    loads_[id] =
        ShareOf(member, static_cast<double>(member.status.kv_bytes + member.kv_bytes_since));
  }
  for (const auto& [id, context] : contexts) AddExpected(context, 1);
}

double Loads::With(WorkerId id, double bytes) const {
  return loads_.at(id) + ShareOf(members_.at(id), bytes);
}

// What a context without KV will take.
void Loads::AddExpected(const Context& context, double times) {
  const ShardMap& map = *context.map;
  if (context.kv_bytes_sum() != 0 || !context.absent.empty()) return;
  for (const auto& [rank, bytes] : FirstBytes(map)) {
    for (const Holder& holder : map.holders) {
      if (holder.rank != rank) continue;
      loads_[holder.worker] += times * ShareOf(members_.at(holder.worker), bytes);
    }
  }
}

Loads Loads::Without(const Context& context) const {
  Loads loads = *this;
  loads.AddExpected(context, -1);
  for (const auto& [worker, bytes] : context.kv_bytes) {
    loads.loads_[worker] -= ShareOf(members_.at(worker), static_cast<double>(bytes));
  }
  return loads;
}

absl::Status Place(ShardMap& map, const Members& members, const Loads& loads) {
  const std::vector<WorkerId> ready = members.Ready();
  if (ready.empty()) {
    return WithRetryAfter(absl::UnavailableError("no worker is ready; retry once one has joined"),
                          kJoinWait);
  }
  const auto replicas = static_cast<size_t>(map.spec.replicas);
  if (ready.size() < replicas) {
    const std::string why = absl::StrCat("replicas: ", replicas, "; expected at most ",
                                         ready.size(), ", the workers that are ready");
    if (!members.MayBeReady(replicas)) return absl::FailedPreconditionError(why);
    return WithRetryAfter(absl::UnavailableError(absl::StrCat(why, "; retry once more are")),
                          kJoinWait);
  }
  map.world = static_cast<int>(ready.size() / replicas);
  map.heads = HeadMapOf(map.spec, map.world, *map.retention);
  map.tracks = TrackSpecs(map.spec);
  const auto first = FirstBytes(map);
  struct Fullness {
    double most = 0;
    double sum = 0;
    bool Less(const Fullness& other) const {
      if (std::abs(most - other.most) > kSameLoad) return most < other.most;
      return sum < other.sum - kSameLoad;
    }
  };
  const auto fullness = [&](size_t start) {
    Fullness fullness;
    for (const auto& [rank, bytes] : first) {
      for (size_t copy = 0; copy < replicas; ++copy) {
        const size_t place = start + static_cast<size_t>(rank) * replicas + copy;
        const WorkerId id = ready[place % ready.size()];
        const double load = loads.With(id, bytes);
        fullness.most = std::max(fullness.most, load);
        fullness.sum += load;
      }
    }
    return fullness;
  };
  size_t best = 0;
  for (size_t start = 1; start < ready.size(); ++start) {
    if (fullness(start).Less(fullness(best))) best = start;
  }
  const size_t answering = map.context % replicas;
  for (size_t i = 0; i < static_cast<size_t>(map.world) * replicas; ++i) {
    const size_t copy = (i % replicas + answering) % replicas;
    const size_t place = best + i / replicas * replicas + copy;
    map.holders.push_back({ready[place % ready.size()], static_cast<int>(i / replicas)});
  }
  Arrange(map);
  return absl::OkStatus();
}

bool Arrange(ShardMap& map) {
  std::vector<Holder> answering(static_cast<size_t>(map.world));
  std::vector<Holder> copies;
  for (const Holder& holder : map.holders) {
    Holder& first = answering[static_cast<size_t>(holder.rank)];
    if (first.worker == 0) {
      first = holder;
    } else {
      copies.push_back(holder);
    }
  }
  const bool whole = std::all_of(answering.begin(), answering.end(),
                                 [](const Holder& holder) { return holder.worker != 0; });
  if (!whole) return false;
  map.holders = std::move(answering);
  map.holders.insert(map.holders.end(), copies.begin(), copies.end());
  return true;
}

Addresses AddressesOf(const ShardMap& map, const Members& members) {
  Addresses addresses;
  for (const Holder& holder : map.holders) {
    const std::string& address = members.at(holder.worker).status.address;
    if (std::ssize(addresses.answering) < map.world) {
      addresses.answering.push_back(address);
    } else {
      addresses.copies.push_back({holder.rank, address});
    }
  }
  return addresses;
}

int64_t NewBlockBytes(const ShardMap& map, int layer, TokenRange tokens, bool copies) {
  const int64_t first = copies ? tokens.begin / kBlockTokens : BlocksOf(tokens.begin);
  const TokenRange blocks{first * kBlockTokens, BlocksOf(tokens.end) * kBlockTokens};
  if (blocks.size() == 0) return 0;
  const Layout layout = map.layout(layer, blocks.end);
  int64_t bytes = 0;
  for (const Holder& holder : map.holders) {
    bytes += AppendBytes(map.SpecOf(layer), layout, holder.rank, blocks);
  }
  return bytes;
}

}  // namespace annulus
