// Which workers hold a context.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core.h"
#include "runtime/store/context_layout.h"

namespace annulus {

namespace {

// Parts of a worker's limit that differ by less are the same.
constexpr double kSameLoad = 1e-9;

// What a context will take first, by rank: its first unit of tokens.
std::vector<std::pair<int, double>> FirstBytes(const ContextSpec& spec, int world) {
  const Layout layout = LayoutOf(spec, world, 0);
  const MeshShape mesh = layout.mesh();
  int64_t blocks = spec.partition.unit_blocks;
  if (spec.partition.kind != PartitionKind::kBlockCyclic) {
    blocks = (BlocksOf(spec.tokens_expected) + mesh.token_groups - 1) / mesh.token_groups;
  } else if (spec.tokens_expected > 0) {
    blocks = std::min(blocks, BlocksOf(spec.tokens_expected));
  }
  const double head_bytes =
      static_cast<double>(PageBytes(spec)) * static_cast<double>(blocks) * spec.layers;
  std::vector<std::pair<int, double>> first;
  for (int group = 0; group < mesh.head_groups; ++group) {
    const int rank = layout.Rank(group, 0);
    first.emplace_back(rank, head_bytes * layout.KvHeads(rank).count);
  }
  return first;
}

}  // namespace

double CoordinatorCore::ShareOf(WorkerId id, double bytes) const {
  return bytes / static_cast<double>(std::max<int64_t>(1, workers_.at(id).status.kv_bytes_limit));
}

void CoordinatorCore::NoteBytes(Context& context, WorkerId id, int64_t bytes) {
  const int64_t before = std::exchange(context.kv_bytes[id], bytes);
  workers_.at(id).kv_bytes_since += std::max<int64_t>(0, bytes - before);
}

CoordinatorCore::Loads CoordinatorCore::LoadsNow() const {
  Loads loads;
  for (const auto& [peer, id] : peers_) {
    const Member& member = workers_.at(id);
    loads[id] = ShareOf(id, static_cast<double>(member.status.kv_bytes + member.kv_bytes_since));
  }
  for (const auto& [id, context] : contexts_) AddExpected(context, 1, loads);
  return loads;
}

// What a context without KV will take.
void CoordinatorCore::AddExpected(const Context& context, double times, Loads& loads) const {
  const ShardMap& map = *context.map;
  const bool is_empty = std::all_of(context.kv_bytes.begin(), context.kv_bytes.end(),
                                    [](const auto& entry) { return entry.second == 0; });
  if (!is_empty || !context.absent.empty()) return;
  for (const auto& [rank, bytes] : FirstBytes(map.spec, map.world)) {
    for (const Holder& holder : map.holders) {
      if (holder.rank == rank) loads[holder.worker] += times * ShareOf(holder.worker, bytes);
    }
  }
}

// Of a context that may move.
CoordinatorCore::Loads CoordinatorCore::WithoutIt(const Context& context, Loads loads) const {
  AddExpected(context, -1, loads);
  for (const auto& [worker, bytes] : context.kv_bytes) {
    loads[worker] -= ShareOf(worker, static_cast<double>(bytes));
  }
  return loads;
}

// A context takes all ready workers: one for each rank, or a pair. It begins where the fullest of
// those that take its first tokens is the least full: short contexts lie on few workers, and not
// always on the same. Of a pair now the one and now the other answers queries.
absl::Status CoordinatorCore::Place(ShardMap& map, const Loads& loads) const {
  std::vector<WorkerId> ready;
  for (const auto& [peer, id] : peers_) {
    if (workers_.at(id).status.state == "ready") ready.push_back(id);
  }
  if (ready.empty()) {
    return absl::UnavailableError("no worker is ready; retry once one has joined");
  }
  const auto replicas = static_cast<size_t>(map.spec.replicas);
  if (ready.size() < replicas) {
    return absl::FailedPreconditionError(
        absl::StrCat("replicas is ", replicas, ", but only ", ready.size(), " worker is ready"));
  }
  std::sort(ready.begin(), ready.end());
  map.world = static_cast<int>(ready.size() / replicas);
  const auto first = FirstBytes(map.spec, map.world);
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
        const double load = loads.at(id) + ShareOf(id, bytes);
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

// Puts the first holder of each rank in its place as the one that answers. False if some rank has
// none.
bool CoordinatorCore::Arrange(ShardMap& map) {
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

std::pair<std::vector<std::string>, std::vector<wire::Copy>> CoordinatorCore::AddressesOf(
    const ShardMap& map) const {
  std::vector<std::string> addresses;
  std::vector<wire::Copy> copies;
  for (const Holder& holder : map.holders) {
    const std::string& address = workers_.at(holder.worker).status.address;
    if (std::ssize(addresses) < map.world) {
      addresses.push_back(address);
    } else {
      copies.push_back({holder.rank, address});
    }
  }
  return {std::move(addresses), std::move(copies)};
}

// That the context goes on as the map says, with what is committed.
wire::Resume CoordinatorCore::ResumeOf(const ShardMap& map,
                                       const std::vector<Layer>& layers) const {
  wire::Resume resume{map.epoch, map.storage, {}, {}};
  std::tie(resume.addresses, resume.copies) = AddressesOf(map);
  for (const Layer& layer : layers) {
    resume.layers.push_back(
        {layer.tokens, layer.horizon, {layer.turn, layer.last_key}, layer.last_tokens});
  }
  resume.serves = map.context;
  return resume;
}

}  // namespace annulus
