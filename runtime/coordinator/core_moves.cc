// How a context moves to other workers: away from one that leaves, to new pairs once a copy is
// missing, to one that has joined. One context at a time, all of the cluster.
//
// The context is opened anew on all ready workers, under an id of its own that no caller knows
// (ShardMap::storage). Then its tokens are copied, a chunk after the other: those that answer for
// it are asked for their rows, and the new holders store them as any append. Calls go on meanwhile,
// and what they append is copied too; the last of it while appends wait (UNAVAILABLE). Then all
// calls on it wait until every new holder knows that it is the context now, and every old one has
// let go of it: so whatever is found after a loss of the coordinator, the first that is complete is
// right.
//
// A move that meets an error, a lost worker or a call that shortens the context is given up: the
// old holders never stopped being right. It is tried again later.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core.h"
#include "runtime/coordinator/core_checks.h"

namespace annulus {
namespace {

// How often it is looked for something to move, and how long after a move that failed.
constexpr absl::Duration kLookPeriod = absl::Milliseconds(100);
constexpr absl::Duration kRetryPeriod = absl::Seconds(1);
// Of one message: small, since the calls of others wait for it.
constexpr int64_t kChunkBytes = int64_t{1} << 20;
// Rounds over all layers after which appends wait for the last one.
constexpr int kRoundsMax = 3;
// A round that would copy no more than this per layer is the last one.
constexpr int64_t kLastRoundTokens = 4 * kBlockTokens;
// A context moves to workers that have joined only if the most that one worker holds becomes less
// than this part of what it was.
constexpr double kWorthwhile = 0.9;
// Set in the request numbers of moves, so that they are no call's.
constexpr uint64_t kMoveRequest = uint64_t{1} << 63;

int RankOf(const ShardMap& map, WorkerId id) {
  return std::find_if(map.holders.begin(), map.holders.end(),
                      [id](const Holder& holder) { return holder.worker == id; })
      ->rank;
}

int64_t BytesOf(const std::map<WorkerId, int64_t>& kv_bytes) {
  int64_t sum = 0;
  for (const auto& [worker, bytes] : kv_bytes) sum += bytes;
  return sum;
}

}  // namespace

bool CoordinatorCore::IsMoveRequest(uint64_t request) {
  return (request & kMoveRequest) != 0;
}

bool CoordinatorCore::IsSwitching(ContextId id) const {
  return move_.has_value() && move_->context == id && move_->phase >= Phase::kActivating;
}

absl::Status CoordinatorCore::CheckNotSwitching(ContextId id) const {
  if (!IsSwitching(id)) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("context ", id, " is being moved; retry"));
}

bool CoordinatorCore::MoveHoldsOff(ContextId id) const {
  return move_.has_value() && move_->context == id && move_->last_round;
}

// Whether the context cannot stay: some of its holders want to leave, or are missing.
bool CoordinatorCore::MustMove(const Context& context) const {
  const std::vector<Holder>& holders = context.map->holders;
  return StateOf(context) == "degraded" ||
         std::any_of(holders.begin(), holders.end(), [this](const Holder& holder) {
           return workers_.at(holder.worker).status.state == "draining";
         });
}

// Whether the most that one worker holds becomes less.
bool CoordinatorCore::IsWorthwhile(const Context& context, const ShardMap& to) const {
  int64_t most_before = 0;
  int64_t most_after = 0;
  const int64_t share = BytesOf(context.kv_bytes) / std::ssize(to.holders);
  for (const auto& [peer, id] : peers_) {
    const int64_t bytes = workers_.at(id).status.kv_bytes;
    const auto held = context.kv_bytes.find(id);
    const bool takes = std::any_of(to.holders.begin(), to.holders.end(),
                                   [id = id](const Holder& h) { return h.worker == id; });
    most_before = std::max(most_before, bytes);
    most_after = std::max(most_after, bytes - (held == context.kv_bytes.end() ? 0 : held->second) +
                                          (takes ? share : 0));
  }
  return static_cast<double>(most_after) < kWorthwhile * static_cast<double>(most_before);
}

// The largest first.
void CoordinatorCore::LookForMove() {
  if (now_ < next_move_) return;
  next_move_ = now_ + kLookPeriod;
  const auto ready =
      static_cast<size_t>(std::count_if(peers_.begin(), peers_.end(), [this](const auto& entry) {
        return workers_.at(entry.second).status.state == "ready";
      }));
  const Context* best = nullptr;
  ShardMap best_to;
  std::optional<Loads> loads;
  for (const auto& [id, context] : contexts_) {
    if (!context.created || !context.lost_to.empty() || !context.absent.empty()) continue;
    if (best != nullptr && BytesOf(context.kv_bytes) <= BytesOf(best->kv_bytes)) continue;
    const bool must = MustMove(context);
    if (!must && (InRecovery() || context.map->holders.size() >= ready)) continue;
    ShardMap to = *context.map;
    to.holders.clear();
    if (!loads.has_value()) loads = LoadsNow();
    if (!Place(to, WithoutIt(context, *loads)).ok()) continue;
    if (!must && (to.holders.size() <= context.map->holders.size() || !IsWorthwhile(context, to))) {
      continue;
    }
    best = &context;
    best_to = std::move(to);
  }
  if (best == nullptr) return;
  best_to.storage = ++last_context_;
  best_to.epoch = ++epoch_;
  Move& move = move_.emplace();
  move.context = best_to.context;
  move.from = best->map;
  move.to = std::make_shared<const ShardMap>(std::move(best_to));
  move.copied.resize(best->layers.size());
  wire::Open open;
  open.epoch = move.to->epoch;
  open.context = move.to->storage;
  open.spec = move.to->spec;
  std::tie(open.addresses, open.copies) = AddressesOf(*move.to);
  open.request = AwaitMovers(move.to->holders);
  for (const Holder& holder : move.to->holders) {
    open.rank = holder.rank;
    Tell(holder.worker, open);
  }
}

// The number of a request that these are about to get, those of them that are there.
uint64_t CoordinatorCore::AwaitMovers(absl::Span<const Holder> holders) {
  Move& move = *move_;
  move.request = kMoveRequest | ++last_move_request_;
  for (const Holder& holder : holders) {
    const auto member = workers_.find(holder.worker);
    if (member != workers_.end() && IsUp(member->second)) move.pending.insert(holder.worker);
  }
  return move.request;
}

void CoordinatorCore::OnMoveDone(WorkerId id, const wire::Done& done) {
  if (!move_.has_value() || move_->request != done.request || move_->pending.erase(id) == 0) return;
  Move& move = *move_;
  if (!done.status.ok() && move.phase != Phase::kRetiring) return GiveUpMove(done.status);
  if (move.phase == Phase::kFilling) move.kv_bytes[id] = done.context_kv_bytes;
  if (move.phase == Phase::kReading) Emit(action::MoveRows{RankOf(*move.from, id)});
}

// Goes on once all that were asked have answered. Called after every event.
void CoordinatorCore::StepMove() {
  if (!move_.has_value()) return LookForMove();
  Move& move = *move_;
  if (!move.pending.empty()) return;
  switch (move.phase) {
    case Phase::kReading:
      return FillChunk();
    case Phase::kFilling:
      move.copied[static_cast<size_t>(move.layer)] = move.chunk.end;
      move.chunk = {};
      return ReadChunk();
    case Phase::kOpening:
      return ReadChunk();
    case Phase::kActivating:
      return SwitchMove();
    case Phase::kRetiring:
      return EndMove();
  }
}

void CoordinatorCore::ReadChunk() {
  Move& move = *move_;
  const Context& context = contexts_.at(move.context);
  const int layers = static_cast<int>(context.layers.size());
  const auto behind = [&](int layer) {
    const auto at = static_cast<size_t>(layer);
    return context.layers[at].tokens - move.copied[at];
  };
  while (move.layer < layers && behind(move.layer) == 0) ++move.layer;
  if (move.layer == layers) {
    int64_t most = 0;
    for (int layer = 0; layer < layers; ++layer) most = std::max(most, behind(layer));
    const bool appending = std::any_of(context.layers.begin(), context.layers.end(),
                                       [](const Layer& layer) { return layer.appending != 0; });
    if (most == 0 && !appending) return ActivateMove();
    ++move.rounds;
    if (most <= kLastRoundTokens || move.rounds >= kRoundsMax) move.last_round = true;
    move.phase = Phase::kOpening;  // looks again after the next event
    move.layer = most == 0 ? layers : 0;
    if (most == 0) return;
    while (behind(move.layer) == 0) ++move.layer;
  }
  const int64_t token_bytes = TokenBytes(move.to->spec) * move.to->spec.kv_heads;
  const int64_t most =
      std::max<int64_t>(1, kChunkBytes / token_bytes / kBlockTokens) * kBlockTokens;
  const int64_t begin = move.copied[static_cast<size_t>(move.layer)];
  move.chunk = {begin, begin + std::min(most, behind(move.layer))};
  move.phase = Phase::kReading;
  Emit(action::MoveRead{move.from, move.to, move.layer, move.chunk});
  wire::Read read;
  read.request = AwaitMovers(move.from->Receivers(false));
  read.epoch = move.from->epoch;
  read.context = move.from->storage;
  read.layer = move.layer;
  read.start = move.chunk.begin;
  read.tokens = move.chunk.size();
  for (const Holder& holder : move.from->Receivers(false)) Tell(holder.worker, read);
}

void CoordinatorCore::FillChunk() {
  Move& move = *move_;
  move.phase = Phase::kFilling;
  wire::Append append;
  append.request = AwaitMovers(move.to->holders);
  append.epoch = move.to->epoch;
  append.context = move.to->storage;
  append.layer = move.layer;
  append.start = move.chunk.begin;
  append.tokens = move.chunk.size();
  append.mark.turn = ++move.turn;
  // What the old holders have not let go of is kept.
  append.horizon =
      std::min(HorizonOf(move.chunk.begin),
               contexts_.at(move.context).layers[static_cast<size_t>(move.layer)].horizon);
  for (const Holder& holder : move.to->holders) {
    Emit(action::MoveFill{workers_.at(holder.worker).peer, holder.rank, append});
  }
}

// From here on all calls on the context wait.
void CoordinatorCore::ActivateMove() {
  Move& move = *move_;
  move.phase = Phase::kActivating;
  wire::Resume resume = ResumeOf(*move.to, contexts_.at(move.context).layers);
  resume.tentative = true;
  resume.request = AwaitMovers(move.to->holders);
  SendToHolders(*move.to, resume);
}

void CoordinatorCore::SwitchMove() {
  Move& move = *move_;
  Context& context = contexts_.at(move.context);
  context.map = move.to;
  context.kv_bytes.clear();
  for (const auto& [worker, bytes] : move.kv_bytes) NoteBytes(context, worker, bytes);
  for (Layer& layer : context.layers) layer.turn = std::max(layer.turn, move.turn);
  EndStaleCalls(absl::UnavailableError("the context was moved to other workers; retry"));
  Retire(*move.from);
}

// What is not needed any more is let go of; calls wait until it is gone.
void CoordinatorCore::Retire(const ShardMap& map) {
  Move& move = *move_;
  move.phase = Phase::kRetiring;
  move.pending.clear();
  SendToHolders(map, wire::Release{AwaitMovers(map.holders), map.epoch, map.storage});
}

void CoordinatorCore::EndMove() {
  Context& context = contexts_.at(move_->context);
  if (move_->phase == Phase::kRetiring && context.lost_to.empty() && context.absent.empty()) {
    // Whichever of the two it is now, it is the latest, and the other one is gone.
    ShardMap map = *context.map;
    map.epoch = ++epoch_;
    context.map = std::make_shared<const ShardMap>(std::move(map));
    EndStaleCalls(absl::UnavailableError("the context was being moved; retry"));
    SendToHolders(*context.map, ResumeOf(*context.map, context.layers));
  }
  Emit(action::MoveEnded{move_->context, move_->failure});
  next_move_ = now_ + (move_->failure.ok() ? absl::ZeroDuration() : kRetryPeriod);
  move_.reset();
}

void CoordinatorCore::GiveUpMove(const absl::Status& why) {
  move_->failure = why;
  // Some may know already that they are the context now: it waits until they have forgotten.
  if (move_->phase == Phase::kActivating) return Retire(*move_->to);
  SendToHolders(*move_->to, wire::Release{0, move_->to->epoch, move_->to->storage});
  EndMove();
}

// After the worker has left the maps of contexts.
void CoordinatorCore::LoseMover(WorkerId id) {
  if (!move_.has_value()) return;
  move_->pending.erase(id);
  if (move_->phase == Phase::kRetiring) return;
  const auto holds = [id](const Holder& holder) { return holder.worker == id; };
  const std::vector<Holder>& to = move_->to->holders;
  if (contexts_.at(move_->context).map == move_->from &&
      std::none_of(to.begin(), to.end(), holds)) {
    return;
  }
  GiveUpMove(absl::UnavailableError(absl::StrCat(workers_.at(id).label, " was lost")));
}

// A draining worker may leave once nothing needs it.
bool CoordinatorCore::MayLeave(WorkerId id) const {
  const auto holds = [id](const ShardMap& map) {
    return std::any_of(map.holders.begin(), map.holders.end(),
                       [id](const Holder& holder) { return holder.worker == id; });
  };
  if (move_.has_value() && (holds(*move_->from) || holds(*move_->to))) return false;
  return std::none_of(contexts_.begin(), contexts_.end(), [&](const auto& entry) {
    return entry.second.lost_to.empty() && holds(*entry.second.map);
  });
}

}  // namespace annulus
