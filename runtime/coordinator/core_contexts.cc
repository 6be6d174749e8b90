// Contexts come to be, fork, shrink and go.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/coordinator/core.h"
#include "runtime/coordinator/core_checks.h"

namespace annulus {

absl::Status CoordinatorCore::CheckRoomForContext(int64_t layers) const {
  if (static_cast<int64_t>(contexts_.size()) >= limits_.contexts_max) {
    return absl::ResourceExhaustedError(absl::StrCat("contexts_max is ", limits_.contexts_max,
                                                     " and as many exist; release contexts"));
  }
  int64_t exist = 0;
  for (const auto& [id, context] : contexts_) exist += std::ssize(context.layers);
  if (layers > limits_.layers_max - exist) {
    return absl::ResourceExhaustedError(
        absl::StrCat("layers_max is ", limits_.layers_max, ": contexts have ", exist,
                     " together, this one needs ", layers, " more; release contexts"));
  }
  return CheckRoomForCall();
}

// Puts the context in place and awaits all of its holders. The caller tells them.
void CoordinatorCore::AddContext(Context context, Call& call) {
  const ShardMap& map = *context.map;
  for (const Holder& holder : map.holders) call.pending.emplace(holder.worker, holder.rank);
  call.context = map.context;
  call.epoch = map.epoch;
  contexts_.emplace(map.context, std::move(context));
}

absl::Status CoordinatorCore::BeginCreate(Call& call) {
  const ContextSpec& spec = call.begin.spec;
  ANNULUS_RETURN_IF_ERROR(CheckRoomForContext(spec.layers));
  ANNULUS_ASSIGN_OR_RETURN(Retention retention, Retention::Of(spec));
  ShardMap map;
  map.context = map.storage = last_context_ + 1;
  map.epoch = epoch_;
  map.spec = spec;
  map.retention = std::make_shared<const Retention>(std::move(retention));
  ANNULUS_RETURN_IF_ERROR(Place(map, LoadsNow()));
  ++last_context_;
  wire::Open open{call.begin.call, epoch_, map.storage, spec, 0, {}};
  open.serves = map.context;
  std::tie(open.addresses, open.copies) = AddressesOf(map);
  for (const Holder& holder : map.holders) {
    open.rank = holder.rank;
    Tell(holder.worker, open);
  }
  Context context;
  context.layers.resize(static_cast<size_t>(spec.layers));
  context.map = std::make_shared<const ShardMap>(std::move(map));
  AddContext(std::move(context), call);
  return absl::OkStatus();
}

absl::Status CoordinatorCore::CheckCut(const Context& context, int64_t tokens) {
  int64_t longest = 0;
  for (const Layer& layer : context.layers) longest = std::max(longest, layer.tokens);
  if (tokens < 0 || tokens > longest) {
    return Bad("tokens", tokens, absl::StrCat("0 to ", longest, ", the context's tokens"));
  }
  for (size_t i = 0; i < context.layers.size(); ++i) {
    const Layer& layer = context.layers[i];
    if (tokens >= layer.tokens) continue;
    ANNULUS_RETURN_IF_ERROR(
        context.map->retention->CheckCut(static_cast<int>(i), layer.horizon, tokens));
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::BeginFork(Call& call) {
  ANNULUS_ASSIGN_OR_RETURN(const Context* parent, FindWhole(call.begin.context));
  ANNULUS_RETURN_IF_ERROR(CheckRoomForContext(std::ssize(parent->layers)));
  Context context;
  context.layers = parent->layers;
  if (call.begin.fork_tokens.has_value()) {
    ANNULUS_RETURN_IF_ERROR(CheckCut(*parent, *call.begin.fork_tokens));
    for (Layer& layer : context.layers) layer.Cut(*call.begin.fork_tokens);
  }
  ShardMap map = *parent->map;
  map.context = map.storage = ++last_context_;
  wire::Fork fork{call.begin.call, map.epoch, map.storage, parent->map->storage, {}};
  for (Layer& layer : context.layers) {
    layer.appending = 0;
    layer.last_key = {};  // keys are of one context
    fork.tokens.push_back(layer.tokens);
  }
  context.map = std::make_shared<const ShardMap>(std::move(map));
  SendToHolders(*context.map, fork);
  AddContext(std::move(context), call);
  return absl::OkStatus();
}

// Done once it has begun: whatever comes next on a link finds the tokens gone.
absl::Status CoordinatorCore::BeginTruncate(Call& call) {
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindWhole(call.begin.context));
  ANNULUS_RETURN_IF_ERROR(CheckRoomForCall());
  const int64_t tokens = call.begin.tokens;
  for (const Layer& layer : context->layers) {
    if (layer.appending == 0) continue;
    return absl::UnavailableError("an append to this context is in flight; retry after it");
  }
  ANNULUS_RETURN_IF_ERROR(CheckCut(*context, tokens));
  if (move_.has_value() && move_->context == call.begin.context) {
    GiveUpMove(absl::AbortedError("the context was truncated"));
  }
  for (Layer& layer : context->layers) layer.Cut(tokens);
  const ShardMap& map = *context->map;
  call.epoch = map.epoch;
  for (const Holder& holder : map.holders) call.pending.emplace(holder.worker, holder.rank);
  SendToHolders(map, wire::Truncate{call.begin.call, map.epoch, map.storage, tokens});
  return absl::OkStatus();
}

absl::Status CoordinatorCore::BeginRelease(Call& call) {
  const auto found = contexts_.find(call.context);
  if (found == contexts_.end() || !found->second.created) return WhyUnknown(call.context);
  ANNULUS_RETURN_IF_ERROR(CheckNotSwitching(call.context));
  if (move_.has_value() && move_->context == call.context) {
    GiveUpMove(absl::CancelledError("the context was released"));
  }
  const ShardMapPtr map = found->second.map;
  call.epoch = map->epoch;
  const absl::Status released =
      absl::CancelledError(absl::StrCat("context ", map->context, " was released"));
  for (auto next = calls_.begin(); next != calls_.end();) {
    const auto other = next++;
    for (Item& item : other->second.items) {
      if (item.ask.context == map->context) EndItem(other->first, item, released);
    }
    if (other->second.context != map->context || &other->second == &call) continue;
    Fail(other, released);
  }
  contexts_.erase(map->context);
  for (const Holder& holder : map->holders) {
    const auto member = workers_.find(holder.worker);
    if (member == workers_.end() || !IsUp(member->second)) continue;
    call.pending.emplace(holder.worker, holder.rank);
  }
  SendToHolders(*map, wire::Release{call.begin.call, map->epoch, map->storage});
  return absl::OkStatus();
}

}  // namespace annulus
