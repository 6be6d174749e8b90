#include "runtime/coordinator/core/mover.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/context/layout.h"

namespace annulus {
namespace {

// How often it is looked for something to move, and how long after a move that failed: each that
// fails in a row doubles it, since what cannot fit would be copied for nothing each time.
constexpr absl::Duration kLookPeriod = absl::Milliseconds(100);
constexpr absl::Duration kRetryPeriod = absl::Seconds(1);
constexpr absl::Duration kRetryPeriodMax = absl::Seconds(8);
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

bool Holds(const ShardMap& map, WorkerId id) {
  return std::any_of(map.holders.begin(), map.holders.end(),
                     [id](const Holder& holder) { return holder.worker == id; });
}

int RankOf(const ShardMap& map, WorkerId id) {
  return std::find_if(map.holders.begin(), map.holders.end(),
                      [id](const Holder& holder) { return holder.worker == id; })
      ->rank;
}

}  // namespace

bool Mover::IsRequest(uint64_t request) {
  return (request & kMoveRequest) != 0;
}

// Whether the context cannot stay: some of its holders want to leave, or are missing.
bool Mover::MustMove(const Context& context) const {
  const std::vector<Holder>& holders = context.map->holders;
  return context.is_degraded() ||
         std::any_of(holders.begin(), holders.end(), [this](const Holder& holder) {
           return members_.at(holder.worker).is_draining();
         });
}

// Whether the most that one worker holds becomes less.
bool Mover::IsWorthwhile(const Context& context, const ShardMap& to) const {
  int64_t most_before = 0;
  int64_t most_after = 0;
  const int64_t share = context.kv_bytes_sum() / std::ssize(to.holders);
  for (const auto& [peer, id] : members_.links()) {
    const int64_t bytes = members_.at(id).status.kv_bytes;
    const auto held = context.kv_bytes.find(id);
    most_before = std::max(most_before, bytes);
    most_after = std::max(most_after, bytes - (held == context.kv_bytes.end() ? 0 : held->second) +
                                          (Holds(to, id) ? share : 0));
  }
  return static_cast<double>(most_after) < kWorthwhile * static_cast<double>(most_before);
}

// The largest first.
void Mover::Look() {
  if (out_.now() < next_look_) return;
  next_look_ = out_.now() + kLookPeriod;
  const size_t ready = members_.Ready().size();
  const Context* best = nullptr;
  ShardMap best_to;
  std::optional<Loads> loads;
  for (const auto& [id, context] : contexts_.all()) {
    if (!context.created || !context.is_whole()) continue;
    if (best != nullptr && context.kv_bytes_sum() <= best->kv_bytes_sum()) continue;
    const bool must = MustMove(context);
    if (!must && (recovery_.waits() || context.map->holders.size() >= ready)) continue;
    ShardMap to = *context.map;
    to.holders.clear();
    if (!loads.has_value()) loads.emplace(members_, contexts_.all());
    if (!Place(to, members_, loads->Without(context)).ok()) continue;
    if (!must && (to.holders.size() <= context.map->holders.size() || !IsWorthwhile(context, to))) {
      continue;
    }
    best = &context;
    best_to = std::move(to);
  }
  if (best != nullptr) Begin(*best, std::move(best_to));
}

void Mover::Begin(const Context& context, ShardMap to) {
  to.storage_id = contexts_.NewId();
  to.epoch = members_.NextEpoch();
  Move& move = move_.emplace(Move());
  move.context = to.context;
  move.from = context.map;
  move.to = std::make_shared<const ShardMap>(std::move(to));
  move.truncations = context.truncations;
  move.copied.resize(context.layers.size());
  contexts_.at(move.context).moving = Moving::kCopying;
  contexts_.Open(*move.to, Await(move.to->holders), 0);
}

// The number of a request that these are about to get, those of them that are there.
uint64_t Mover::Await(absl::Span<const Holder> holders) {
  move_->request = kMoveRequest | ++last_request_;
  for (const Holder& holder : holders) {
    if (members_.IsUp(holder.worker)) move_->pending.insert(holder.worker);
  }
  return move_->request;
}

void Mover::OnDone(WorkerId id, uint64_t request, const absl::Status& status, int64_t kv_bytes,
                   int64_t owner_kv_bytes) {
  if (!move_.has_value() || move_->request != request || move_->pending.erase(id) == 0) return;
  Move& move = *move_;
  if (status.ok()) tenants_.NoteKv(move.to->spec.owner, id, owner_kv_bytes);
  if (!status.ok() && move.phase != Phase::kRetiring) return GiveUp(status);
  if (move.phase == Phase::kFilling) {
    move.kv_bytes[id] = kv_bytes;
    int64_t twice = 0;
    for (const auto& [worker, bytes] : move.kv_bytes) twice += bytes;
    tenants_.SetKvMoving(move.to->spec.owner, twice);
  }
  if (move.phase == Phase::kReading) out_.Emit(action::MoveRows{RankOf(*move.from, id)});
}

void Mover::OnSendFailed(uint64_t request, const absl::Status& why) {
  if (move_.has_value() && move_->request == request) GiveUp(why);
}

// What was right when the move began still is.
absl::Status Mover::CheckSound() const {
  const Move& move = *move_;
  if (!contexts_.Has(move.context)) return absl::CancelledError("the context was released");
  const Context& context = contexts_.at(move.context);
  if (context.truncations != move.truncations) {
    return absl::AbortedError("the context was truncated");
  }
  const bool holders_up =
      std::all_of(move.to->holders.begin(), move.to->holders.end(),
                  [this](const Holder& holder) { return members_.IsUp(holder.worker); });
  if (context.map == move.from && holders_up) return absl::OkStatus();
  return absl::UnavailableError("a worker that takes part in the move was lost");
}

// Goes on once all that were asked have answered.
void Mover::Step() {
  if (!move_.has_value()) return Look();
  Move& move = *move_;
  if (move.phase != Phase::kRetiring) {
    if (absl::Status sound = CheckSound(); !sound.ok()) return GiveUp(sound);
  }
  std::erase_if(move.pending, [this](WorkerId id) { return !members_.IsUp(id); });
  if (!move.pending.empty()) return;
  switch (move.phase) {
    case Phase::kReading:
      return Fill();
    case Phase::kFilling:
      move.copied[static_cast<size_t>(move.layer)] = move.chunk.end;
      move.chunk = {};
      return Read();
    case Phase::kOpening:
      return Read();
    case Phase::kActivating:
      return Switch();
    case Phase::kRetiring:
      return End();
  }
}

// Finds the next tokens to copy. False if there are none now: then it looks again after the next
// event, or the new holders are told that they are the context.
bool Mover::NextChunk() {
  Move& move = *move_;
  Context& context = contexts_.at(move.context);
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
    if (most == 0 && !appending) {
      Activate();
      return false;
    }
    ++move.rounds;
    if (most <= kLastRoundTokens || move.rounds >= kRoundsMax) context.moving = Moving::kHoldsOff;
    move.phase = Phase::kOpening;
    if (most == 0) return false;
    for (move.layer = 0; behind(move.layer) == 0;) ++move.layer;
  }
  const ContextSpec& rows = move.to->SpecOf(move.layer);
  const int64_t token_bytes = TokenBytes(rows) * rows.kv_heads;
  const int64_t most =
      std::max<int64_t>(1, kChunkBytes / token_bytes / kBlockTokens) * kBlockTokens;
  const int64_t begin = move.copied[static_cast<size_t>(move.layer)];
  move.chunk = {begin, begin + std::min(most, behind(move.layer))};
  return true;
}

void Mover::Read() {
  if (!NextChunk()) return;
  Move& move = *move_;
  move.phase = Phase::kReading;
  out_.Emit(action::MoveRead{move.from, move.to, move.layer, move.chunk});
  const absl::Span<const Holder> answering = move.from->Receivers(false);
  wire::Read read;
  read.request = Await(answering);
  read.epoch = move.from->epoch;
  read.storage_id = move.from->storage_id;
  read.layer = move.layer;
  read.start = move.chunk.begin;
  read.tokens = move.chunk.size();
  for (const Holder& holder : answering) members_.Tell(holder.worker, read);
}

void Mover::Fill() {
  Move& move = *move_;
  move.phase = Phase::kFilling;
  const Layer& layer = contexts_.at(move.context).layers[static_cast<size_t>(move.layer)];
  wire::Work work;
  work.request = Await(move.to->holders);
  wire::WorkItem& append = work.items.emplace_back();
  append.epoch = move.to->epoch;
  append.storage_id = move.to->storage_id;
  append.layer = move.layer;
  append.start = move.chunk.begin;
  append.k_tokens = move.chunk.size();
  append.mark.append_number = ++move.append_number;
  // What the old holders have not let go of is kept.
  append.horizon = std::min(HorizonOf(move.chunk.begin), layer.horizon);
  for (const Holder& holder : move.to->holders) {
    out_.Emit(action::MoveFill{members_.at(holder.worker).peer, holder.rank, work});
  }
}

// From here on all calls on the context wait.
void Mover::Activate() {
  Move& move = *move_;
  move.phase = Phase::kActivating;
  Context& context = contexts_.at(move.context);
  context.moving = Moving::kSwitching;
  wire::Resume resume = context.Resume(members_, *move.to);
  resume.activating = true;
  resume.request = Await(move.to->holders);
  members_.TellHolders(*move.to, resume);
}

void Mover::Switch() {
  Move& move = *move_;
  Context& context = contexts_.at(move.context);
  context.map = move.to;
  context.kv_bytes.clear();
  for (const auto& [worker, bytes] : move.kv_bytes) contexts_.NoteBytes(context, worker, bytes);
  for (Layer& layer : context.layers) {
    layer.append_number = std::max(layer.append_number, move.append_number);
    layer.forked_blocks = 0;  // the new holders share none
    layer.last_block.reset();
  }
  calls_.EndStale(absl::UnavailableError("the context was moved to other workers; retry"));
  Retire(*move.from);
}

// What is not needed any more is let go of; calls wait until it is gone.
void Mover::Retire(const ShardMap& map) {
  move_->phase = Phase::kRetiring;
  move_->pending.clear();
  members_.TellHolders(map, wire::Release{Await(map.holders), map.epoch, map.storage_id});
}

void Mover::End() {
  const Move& move = *move_;
  if (contexts_.Has(move.context)) {
    Context& context = contexts_.at(move.context);
    context.moving = Moving::kNo;
    if (move.phase == Phase::kRetiring && context.is_whole()) {
      // Whichever of the two it is now, it is the latest, and the other one is gone.
      members_.NextEpoch();
      contexts_.SetMap(context, *context.map);
      calls_.EndStale(absl::UnavailableError("the context was being moved; retry"));
      members_.TellHolders(*context.map, context.Resume(members_, *context.map));
    }
  }
  tenants_.SetKvMoving(move.to->spec.owner, 0);
  out_.Emit(action::MoveEnded{move.context, move.failure});
  if (move.failure.ok()) {
    pause_ = absl::ZeroDuration();
  } else {
    pause_ = std::clamp(2 * pause_, kRetryPeriod, kRetryPeriodMax);
  }
  next_look_ = out_.now() + pause_;
  move_.reset();
}

void Mover::GiveUp(const absl::Status& why) {
  move_->failure = why;
  // Some may know already that they are the context now: it waits until they have forgotten.
  if (move_->phase == Phase::kActivating) return Retire(*move_->to);
  members_.TellHolders(*move_->to, wire::Release{0, move_->to->epoch, move_->to->storage_id});
  End();
}

bool Mover::Needs(WorkerId id) const {
  return move_.has_value() && (Holds(*move_->from, id) || Holds(*move_->to, id));
}

}  // namespace annulus
