#include "runtime/coordinator/core/contexts.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/layout.h"
#include "runtime/context/retention.h"
#include "runtime/coordinator/core/checks.h"
#include "runtime/coordinator/core/placement.h"

namespace annulus {

int64_t Context::kv_bytes_sum() const {
  int64_t sum = 0;
  for (const auto& [worker, bytes] : kv_bytes) sum += bytes;
  return sum;
}

absl::Status Context::CheckUsable() const {
  const ContextId id = map->context;
  if (!lost_to.empty()) {
    return absl::DataLossError(absl::StrCat("context ", id, " lost KV with ", lost_to,
                                            "; release it, create it again and upload it"));
  }
  if (!absent.empty()) {
    return absl::UnavailableError(absl::StrCat("context ", id, " waits for ", absent.size(),
                                               " of its ", absent.size() + map->holders.size(),
                                               " workers to join again; retry"));
  }
  return CheckNotSwitching();
}

absl::Status Context::CheckNotSwitching() const {
  if (moving != Moving::kSwitching) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("context ", map->context, " is being moved; retry"));
}

absl::Status Context::CheckLayer(int layer) const {
  const int count = static_cast<int>(layers.size());
  if (layer >= 0 && layer < count) return absl::OkStatus();
  return Bad("layer", layer, absl::StrCat("0 to ", count - 1));
}

absl::StatusOr<Layer*> Context::FindLayer(int layer) {
  ANNULUS_RETURN_IF_ERROR(CheckLayer(layer));
  return &layers[static_cast<size_t>(layer)];
}

absl::Status Context::CheckCut(int64_t tokens) const {
  int64_t longest = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    longest = std::max(longest, layers[i].tokens * map->RatioOf(static_cast<int>(i)));
  }
  if (tokens < 0 || tokens > longest) {
    return Bad("tokens", tokens, absl::StrCat("0 to ", longest, ", the context's tokens"));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (map->RowsOf(static_cast<int>(i), tokens) >= layers[i].tokens) continue;
    ANNULUS_RETURN_IF_ERROR(
        map->retention->CheckCut(static_cast<int>(i), layers[i].horizon, tokens));
  }
  return absl::OkStatus();
}

wire::Resume Context::Resume(const Members& members, const ShardMap& held) const {
  wire::Resume resume{held.epoch, held.storage_id, {}, {}};
  Addresses addresses = AddressesOf(held, members);
  resume.addresses = std::move(addresses.answering);
  resume.copies = std::move(addresses.copies);
  for (const Layer& layer : layers) {
    resume.layers.push_back(
        {layer.tokens, layer.horizon, {layer.append_number, layer.last_key}, layer.last_tokens});
  }
  resume.context = held.context;
  return resume;
}

ContextInfo Context::Info(absl::Time now) const {
  ContextInfo info = InfoWithoutPatterns(now);
  info.spec.patterns = map->spec.patterns;
  return info;
}

ContextInfo Context::InfoWithoutPatterns(absl::Time now) const {
  ContextInfo info;
  info.id = map->context;
  info.epoch = map->epoch;
  info.spec = WithoutPatterns(map->spec);
  for (const Layer& layer : layers) info.tokens.push_back(layer.tokens);
  info.kv_bytes = kv_bytes_sum();
  info.idle_s = calls > 0 ? 0 : std::max(0.0, absl::ToDoubleSeconds(now - used));
  info.dense_kv_bytes = DenseBytes(map->spec, map->heads, info.tokens) * map->spec.replicas;
  info.state = std::string(Name(state()));
  return info;
}

ContextState Context::state() const {
  if (!lost_to.empty()) return ContextState::kLost;
  if (!absent.empty()) return ContextState::kRecovering;
  if (is_degraded()) return ContextState::kDegraded;
  return moving == Moving::kNo ? ContextState::kOk : ContextState::kMoving;
}

const Context* Contexts::Find(ContextId id) const {
  const auto found = contexts_.find(id);
  return found == contexts_.end() || !found->second.created ? nullptr : &found->second;
}

Context* Contexts::Find(ContextId id) {
  return const_cast<Context*>(std::as_const(*this).Find(id));
}

bool Contexts::Need(WorkerId id) const {
  return std::any_of(contexts_.begin(), contexts_.end(), [id](const auto& entry) {
    const std::vector<Holder>& holders = entry.second.map->holders;
    return entry.second.lost_to.empty() &&
           std::any_of(holders.begin(), holders.end(),
                       [id](const Holder& holder) { return holder.worker == id; });
  });
}

absl::Status Contexts::CheckRoom(const std::string& owner, int64_t layers) const {
  ANNULUS_RETURN_IF_ERROR(count_.Check(owner, 1));
  return layers_.Check(owner, layers);
}

void Contexts::Count(const Context& context, int contexts) {
  count_.Add(context.owner(), contexts);
  layers_.Add(context.owner(), contexts * std::ssize(context.layers));
  tenants_.AddContexts(context.owner(), contexts);
}

absl::StatusOr<Context*> Contexts::Create(const ContextSpec& spec, CallId request) {
  ANNULUS_RETURN_IF_ERROR(CheckRoom(spec.owner, StoredLayers(spec)));
  ANNULUS_ASSIGN_OR_RETURN(Retention retention, Retention::Of(spec));
  ShardMap map;
  map.context = map.storage_id = last_id_ + 1;
  map.epoch = members_.epoch();
  map.spec = spec;
  map.retention = std::make_shared<const Retention>(std::move(retention));
  ANNULUS_RETURN_IF_ERROR(Place(map, members_, Loads(members_, contexts_)));
  ++last_id_;
  Open(map, request, map.context);
  Context& context = contexts_[map.context];
  context.layers.resize(static_cast<size_t>(StoredLayers(spec)));
  context.map = std::make_shared<const ShardMap>(std::move(map));
  Count(context, 1);
  return &context;
}

void Contexts::Open(const ShardMap& map, uint64_t request, ContextId context) {
  Addresses addresses = AddressesOf(map, members_);
  wire::Open open{request, map.epoch,           map.storage_id,   map.spec,
                  0,       addresses.answering, addresses.copies, context};
  for (const Holder& holder : map.holders) {
    open.rank = holder.rank;
    members_.Tell(holder.worker, open);
  }
}

absl::StatusOr<Context*> Contexts::Fork(Context& parent, std::optional<int64_t> tokens,
                                        CallId request) {
  ANNULUS_RETURN_IF_ERROR(CheckRoom(parent.owner(), std::ssize(parent.layers)));
  if (tokens.has_value()) ANNULUS_RETURN_IF_ERROR(parent.CheckCut(*tokens));
  ShardMap map = *parent.map;
  map.context = map.storage_id = ++last_id_;
  Context& context = contexts_[map.context];
  wire::Fork fork{request, map.epoch, map.storage_id, parent.map->storage_id, {}};
  for (size_t i = 0; i < parent.layers.size(); ++i) {
    int64_t cut = parent.layers[i].tokens;
    if (tokens.has_value()) cut = std::min(cut, map.RowsOf(static_cast<int>(i), *tokens));
    parent.layers[i].Share(cut);
    Layer& layer = context.layers.emplace_back(parent.layers[i]);
    layer.Cut(cut);
    layer.truncations = 0;
    if (layer.appending != 0) layer.last_block.reset();  // the append may copy it before
    layer.appending = 0;
    layer.last_key = {};  // keys are of one context
    fork.tokens.push_back(layer.tokens);
  }
  context.map = std::make_shared<const ShardMap>(std::move(map));
  members_.TellHolders(*context.map, fork);
  Count(context, 1);
  return &context;
}

// Whatever comes next on a link finds the tokens gone.
absl::Status Contexts::Truncate(Context& context, int64_t tokens, CallId request) {
  for (const Layer& layer : context.layers) {
    if (layer.appending == 0) continue;
    return absl::UnavailableError("an append to this context is in flight; retry after it");
  }
  ANNULUS_RETURN_IF_ERROR(context.CheckCut(tokens));
  ++context.truncations;
  const ShardMap& map = *context.map;
  for (size_t i = 0; i < context.layers.size(); ++i) {
    context.layers[i].Cut(map.RowsOf(static_cast<int>(i), tokens));
  }
  members_.TellHolders(map, wire::Truncate{request, map.epoch, map.storage_id, tokens});
  return absl::OkStatus();
}

void Contexts::Release(ContextId id, CallId request) {
  const auto found = contexts_.find(id);
  const ShardMapPtr map = found->second.map;
  Count(found->second, -1);
  contexts_.erase(found);
  members_.TellHolders(*map, wire::Release{request, map->epoch, map->storage_id});
}

void Contexts::Add(Context context) {
  const ContextId id = context.map->context;
  Count(context, 1);
  Use(contexts_.emplace(id, std::move(context)).first->second);
}

void Contexts::SetMap(Context& context, ShardMap map) const {
  map.epoch = members_.epoch();
  context.map = std::make_shared<const ShardMap>(std::move(map));
}

void Contexts::NoteBytes(Context& context, WorkerId id, int64_t bytes) {
  const int64_t before = std::exchange(context.kv_bytes[id], bytes);
  members_.NoteStored(id, std::max<int64_t>(0, bytes - before));
}

}  // namespace annulus
