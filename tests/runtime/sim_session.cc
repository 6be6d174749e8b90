#include "tests/runtime/sim_session.h"

#include <algorithm>
#include <cstring>

namespace annulus::test {
namespace {

constexpr absl::Duration kLateMax = absl::Milliseconds(50);  // of an end after its deadline

void CopyTensor(const Tensor& from, Tensor* to) {
  *to = Tensor(from.dtype(), from.tokens(), from.heads(), from.dim());
  std::memcpy(to->data(), from.data(), from.size_bytes());
}

LayerKv CopyOf(const LayerKv& kv) {
  LayerKv copy;
  CopyTensor(kv.k, &copy.k);
  CopyTensor(kv.v, &copy.v);
  return copy;
}

void Randomise(Tensor& tensor, TokenRange tokens, Rng& rng) {
  const int64_t row = tensor.heads() * tensor.dim();
  for (int64_t i = tokens.begin * row; i < tokens.end * row; ++i) tensor.f32()[i] = rng.Normal();
}

// Of a call of one item, its end.
absl::Status StatusOf(const action::Finish& finish) {
  return finish.items.empty() ? finish.status : finish.items[0].status;
}

}  // namespace

void SimSession::Run() {
  if (cluster_.now() > end_) return;
  if (!FindOut()) {
    return cluster_.network().At(cluster_.now() + absl::Milliseconds(5), [this] { Run(); });
  }
  if (contexts_.empty()) return Create();
  for (Context& context : contexts_) {
    if (context.doubtful) return Release(context);
  }
  auto at = contexts_.begin();
  std::advance(at, static_cast<long>(rng_.Below(contexts_.size())));
  Context& context = *at;
  const auto info = cluster_.coordinator().core().Describe(context.id, caller_);
  if (info.ok() && info->state == "lost") {
    if (waits_for_lost_) {
      context.lost = true;
      return cluster_.network().At(cluster_.now() + absl::Milliseconds(5), [this] { Run(); });
    }
    ++tally_.lost;
    return Release(context);
  }
  if (std::exchange(context.lost, false)) ++tally_.back;
  if (info.ok()) context.degraded = info->state == "degraded";
  const uint64_t choice = rng_.Below(24);
  if (choice == 0) return Release(context);
  if (choice == 1 && contexts_.size() < 3) return Create();
  if (choice <= 3 && contexts_.size() < 3) return Fork(context);
  if (many_ranks_ && context.committed < 6 * kBlockTokens) return Append(context);
  if (choice <= 5 || context.committed > tokens_max_ - 8) return Truncate(context);
  if (choice <= 9 || context.committed == 0) return Append(context);
  if (choice <= 13 && !many_ranks_) return Attend(context);
  Step();
}

void SimSession::Create() {
  static const char* const kPatterns[] = {"causal", "window(50) | sink(3)",
                                          "s2(64, 1, 2, dense_heads=1)", "window(20)"};
  ContextSpec spec;
  spec.heads = 4;
  spec.kv_heads = static_cast<int>(rng_.Between(1, 2));
  spec.head_dim = spec.v_head_dim = 8;
  spec.dtype = DType::kF32;
  spec.placement = static_cast<Placement>(rng_.Below(3));
  spec.partition = {PartitionKind::kBlockCyclic, 1};
  if (many_ranks_ && rng_.Below(3) != 0) spec.placement = Placement::kTokens;
  if (rng_.Below(2) == 0) spec.patterns = {kPatterns[rng_.Below(4)]};
  spec.kv_efficient = !spec.patterns.empty() && rng_.Below(2) == 0;
  if (always_two_ || rng_.Below(3) == 0) spec.replicas = 2;
  spec.lease = lease_;
  if (lease_ > 0) spec.evictable = rng_.Below(2) == 0;
  auto call = std::make_shared<Call>();
  call->finished = [this, spec](const action::Finish& finish) {
    // Two copies need two workers.
    if (absl::IsFailedPrecondition(finish.status) && spec.replicas == 2) return;
    if (!finish.status.ok()) return Expect(finish.status, false);
    Context& context = contexts_.emplace_back();
    context.spec = spec;
    context.id = finish.context;
    context.kv = LayerKv(spec, tokens_max_, rng_);
    context.used = cluster_.now();
    ++tally_.creates;
  };
  Begin(request::Create{spec}, std::move(call), absl::ZeroDuration());
}

// New values, so that what was taken back or truncated cannot pass for what comes now.
void SimSession::NewTry(Context& context, int64_t tokens) {
  context.key = {client_, ++sequence_};
  context.tried = {context.committed, context.committed + tokens};
  context.went_well = false;
  Randomise(context.kv.k, context.tried, rng_);
  Randomise(context.kv.v, context.tried, rng_);
  if (context.spec.kv_efficient) {
    context.horizon = std::max(context.horizon, HorizonOf(context.tried.begin));
  }
}

void SimSession::Appended(Context& context, const absl::Status& status, int64_t tokens) {
  if (!status.ok()) return ExpectOf(context, status, context.committed < context.tried.end);
  if (tokens != context.tried.end) Fail("acknowledged tokens do not add up");
  context.went_well = true;
}

void SimSession::Append(Context& context) {
  const bool again = context.tried.size() > 0 && rng_.Below(5) == 0;
  if (!again) {
    const int64_t most = many_ranks_ ? 8 * kBlockTokens : 70;
    NewTry(context, rng_.Between(1, std::min<int64_t>(most, tokens_max_ - context.committed)));
  }
  tally_.repetitions += again;
  StartAppend(context, context.tried, absl::ZeroDuration());
  if (rng_.Below(4) != 0) return;
  ++tally_.repetitions;
  StartAppend(context, context.tried, absl::Milliseconds(rng_.Between(0, 8)));
}

void SimSession::StartAppend(Context& context, TokenRange tokens, absl::Duration later) {
  auto call = std::make_shared<Call>();
  call->append = context.kv.Append(context.id, 0, tokens.begin, tokens.size());
  call->append.key = context.key;
  call->contexts = {&context};
  call->work = std::make_unique<BatchCall>(std::vector{CallItem(call->append)}, CallContext(),
                                           planner_, cluster_.network().clock());
  call->finished = [this, &context](const action::Finish& finish) {
    const absl::Status status = StatusOf(finish);
    Appended(context, status, status.ok() ? finish.items.at(0).tokens : 0);
    tally_.appends += status.ok();
  };
  const request::Work request = call->work->request();
  Begin(request, std::move(call), later);
}

void SimSession::Step() {
  std::vector<Context*> contexts;
  std::vector<int64_t> queries;
  for (Context& context : contexts_) {
    const bool again = context.tried.size() > 0 && context.tried.size() < 4 && rng_.Below(6) == 0;
    tally_.repetitions += again;
    if (!again) {
      if (context.committed > tokens_max_ - 8) continue;
      NewTry(context, rng_.Below(4) == 0 ? rng_.Between(2, 3) : 1);
    }
    contexts.push_back(&context);
    queries.push_back(rng_.Below(6) == 0 ? 0 : context.tried.size());
  }
  if (contexts.empty()) {
    return many_ranks_ ? Truncate(contexts_.front()) : Attend(contexts_.front());
  }
  StartStep(contexts, queries, absl::ZeroDuration());
  if (rng_.Below(4) != 0) return;
  ++tally_.repetitions;
  StartStep(contexts, queries, absl::Milliseconds(rng_.Between(0, 8)));
}

void SimSession::StartStep(const std::vector<Context*>& contexts,
                           const std::vector<int64_t>& queries, absl::Duration later) {
  auto call = std::make_shared<Call>();
  call->contexts = contexts;
  for (size_t i = 0; i < contexts.size(); ++i) {
    Context& context = *contexts[i];
    const AppendRequest append =
        context.kv.Append(context.id, 0, context.tried.begin, context.tried.size());
    call->queries.push_back(RandomTensor(queries[i], context.spec.heads, 8, rng_));
    StepRequest step;
    step.context = context.id;
    step.start = append.start;
    step.k = append.k;
    step.v = append.v;
    step.q = call->queries.back();
    step.key = context.key;
    call->steps.push_back(step);
  }
  call->work =
      std::make_unique<BatchCall>(std::vector<CallItem>(call->steps.begin(), call->steps.end()),
                                  CallContext(), planner_, cluster_.network().clock());
  call->finished = [this, call = call.get()](const action::Finish& finish) {
    if (finish.items.empty()) return Expect(finish.status, false);
    for (size_t i = 0; i < call->steps.size(); ++i) {
      const absl::StatusOr<StepResult> result = call->work->TakeResult(i, finish);
      Context& context = *call->contexts[i];
      Appended(context, result.status(), result.ok() ? result->tokens : 0);
      if (!result.ok()) continue;
      ++tally_.appends;
      if (call->queries[i].tokens() == 0) continue;
      ++tally_.answers;
      tally_.degraded_answers += context.degraded;
      const Partial expected =
          Oracle(context.spec, context.kv, call->queries[i], context.tried.end, context.pattern());
      if (!(WorstError(result->out, result->lse, expected) < 1e-4)) {
        Fail("wrong answer to a step");
      }
    }
  };
  const request::Work request = call->work->request();
  Begin(request, std::move(call), later);
}

void SimSession::Attend(Context& context) {
  static const char* const kPatterns[] = {"", "full", "window(90) | sink(2)", "s2(64, 1, 2)"};
  if (context.committed == 0) return Append(context);
  auto call = std::make_shared<Call>();
  AttendRequest& attend = call->attend;
  attend.context = context.id;
  attend.kv_len = rng_.Between(1, context.committed);
  const int64_t n = rng_.Between(1, std::min<int64_t>(3, attend.kv_len));
  call->queries.push_back(RandomTensor(n, context.spec.heads, 8, rng_));
  attend.q = call->queries.back();
  attend.q_start = attend.kv_len - n;
  if (!context.spec.kv_efficient) attend.pattern = kPatterns[rng_.Below(4)];
  attend.plan = PlanKind::kPassQ;
  call->contexts = {&context};
  auto work =
      std::make_unique<AttendCall>(attend, CallContext(), planner_, cluster_.network().clock());
  AttendCall& attend_call = *work;
  call->work = std::move(work);
  const request::Work request = call->work->request();
  call->finished = [this, &context, &attend, &attend_call](const action::Finish& finish) {
    const absl::Status status = StatusOf(finish);
    const bool evicted = absl::IsInvalidArgument(status) && attend.q_start < context.horizon;
    if (evicted) return;
    if (!status.ok()) return ExpectOf(context, status);
    const absl::StatusOr<AttendResult> result = std::move(attend_call).TakeResult(finish);
    if (!result.ok()) return Fail("an answer cannot be finalised");
    const Partial expected = Oracle(context.spec, context.kv, attend.q, attend.kv_len,
                                    PatternOf(context.spec, 0, attend.pattern));
    if (!(WorstError(result->out, result->lse, expected) < 1e-4)) Fail("wrong answer");
    ++tally_.answers;
    tally_.degraded_answers += context.degraded;
  };
  Begin(request, std::move(call), absl::ZeroDuration());
}

void SimSession::Truncate(Context& context) {
  const int64_t tokens = rng_.Between(many_ranks_ ? context.committed / 2 : 0, context.committed);
  auto call = std::make_shared<Call>();
  call->contexts = {&context};
  call->finished = [this, &context, tokens](const action::Finish& finish) {
    if (absl::IsInvalidArgument(finish.status) && tokens < context.horizon) return;
    if (!finish.status.ok()) ExpectOf(context, finish.status);
    if (!finish.status.ok() && cluster_.coordinator_may_be_lost()) {
      context.doubtful = true;
      return;
    }
    // Past its deadline it may have been carried out all the same.
    const auto info = cluster_.coordinator().core().Describe(context.id, caller_);
    if (!info.ok() || info->tokens[0] != tokens) {
      if (finish.status.ok()) Fail("what was truncated is there");
      return;
    }
    context.committed = tokens;
    context.horizon = std::min(context.horizon, HorizonOf(tokens));
    ++tally_.truncates;
  };
  Begin(request::Truncate{context.id, tokens}, std::move(call), absl::ZeroDuration());
}

void SimSession::Fork(Context& context) {
  request::Fork fork{context.id, std::nullopt};
  if (rng_.Below(2) == 0) fork.tokens = rng_.Between(0, context.committed);
  auto call = std::make_shared<Call>();
  const int64_t tokens = fork.tokens.value_or(context.committed);
  call->contexts = {&context};
  call->finished = [this, &context, tokens](const action::Finish& finish) {
    if (absl::IsInvalidArgument(finish.status) && tokens < context.horizon) return;
    if (!finish.status.ok()) return ExpectOf(context, finish.status);
    Context& child = contexts_.emplace_back();
    child.used = cluster_.now();
    child.spec = context.spec;
    child.kv = CopyOf(context.kv);
    child.id = finish.context;
    child.committed = tokens;
    child.horizon = std::min(context.horizon, HorizonOf(tokens));
    ++tally_.forks;
  };
  Begin(fork, std::move(call), absl::ZeroDuration());
}

void SimSession::Release(Context& context) {
  auto call = std::make_shared<Call>();
  call->contexts = {&context};
  call->finished = [this, &context](const action::Finish& finish) {
    if (lease_ > 0 && absl::IsNotFound(finish.status)) return ExpectOf(context, finish.status);
    // Nobody knows it any more if it was lost with a coordinator and all of its workers.
    const bool coordinator_lost =
        (absl::IsUnavailable(finish.status) && cluster_.coordinator_may_be_lost()) ||
        (absl::IsNotFound(finish.status) && context.doubtful);
    const bool moving = absl::IsUnavailable(finish.status);  // then it is left behind
    if (!absl::IsDeadlineExceeded(finish.status) && !finish.status.ok() && !coordinator_lost &&
        !moving) {
      Fail(finish.status.ToString());
    }
    if (!finish.status.ok()) left_behind_.push_back(context.id);
    forgotten_.push_back(&context);
  };
  Begin(request::Release{context.id}, std::move(call), absl::ZeroDuration());
}

void SimSession::Begin(Request request, std::shared_ptr<Call> call, absl::Duration later) {
  ++in_flight_;
  call->id = cluster_.NextCall();
  call->deadline = absl::InfiniteFuture();
  if (rng_.Below(4) == 0) {
    call->deadline = cluster_.now() + later + absl::Milliseconds(rng_.Between(100, 400));
  }
  cluster_.network().At(cluster_.now() + later, [this, request = std::move(request), call] {
    if (!cluster_.coordinator_is_up()) {
      action::Finish finish;
      finish.status = absl::UnavailableError("there is no coordinator");
      return OnNews(call, std::move(finish));
    }
    cluster_.coordinator().Begin({call->id, request, call->deadline, caller_},
                                 [this, call](CallNews news) { OnNews(call, std::move(news)); });
  });
}

void SimSession::OnNews(const std::shared_ptr<Call>& call, CallNews news) {
  if (auto* admitted = std::get_if<action::Admit>(&news)) {
    // Planning and packing take the caller some time.
    const absl::Time when = cluster_.now() + absl::Microseconds(rng_.Between(0, 3000));
    cluster_.network().At(when, [this, call, admit = std::move(*admitted)] {
      if (call->work == nullptr) return;  // it has ended meanwhile
      absl::StatusOr<PreparedCall> work = call->work->Prepare(admit);
      if (!work.ok()) return cluster_.coordinator().GiveUp(call->id, work.status());
      cluster_.coordinator().Prepared(call->id, *std::move(work));
    });
    return;
  }
  if (auto* answer = std::get_if<ShareAnswer>(&news)) {
    const absl::Status merged = call->work->OnAnswer(std::move(*answer));
    if (!merged.ok()) Fail(merged.ToString());
    return;
  }
  const auto& finish = std::get<action::Finish>(news);
  call->finished(finish);
  call->work = nullptr;
  // One whose deadline had passed when it came did not use its contexts; an item of a step that
  // failed may have ended long before.
  for (size_t i = 0; i < call->contexts.size(); ++i) {
    const bool is_step = !call->steps.empty();
    const absl::Status& end = finish.items.empty() ? finish.status : finish.items[i].status;
    const bool used = is_step ? end.ok() : !absl::IsDeadlineExceeded(end);
    if (used) call->contexts[i]->used = cluster_.now();
  }
  tally_.Note(static_cast<uint64_t>(StatusOf(finish).code()));
  tally_.Note(static_cast<uint64_t>(absl::ToUnixNanos(cluster_.now())));
  if (cluster_.now() > std::max(call->deadline, cluster_.coordinator_resumed()) + kLateMax) {
    Fail("a call ended long after its deadline");
  }
  if (--in_flight_ == 0) RoundEnded();
}

void SimSession::RoundEnded() {
  for (Context& context : contexts_) Settle(context);
  for (const Context* gone : std::exchange(forgotten_, {})) {
    contexts_.remove_if([gone](const Context& context) { return &context == gone; });
  }
  cluster_.network().At(cluster_.now() + absl::Milliseconds(rng_.Between(0, 15)),
                        [this] { Run(); });
}

void SimSession::ExpectOf(Context& context, const absl::Status& status, bool may_be_gone) {
  if (lease_ == 0 || !absl::IsNotFound(status)) return Expect(status, may_be_gone);
  ++tally_.errors;
  if (std::exchange(context.gone, true)) return;
  const absl::Duration unused = cluster_.now() - context.used;
  if (unused < absl::Seconds(lease_) && !context.spec.evictable) {
    Fail(absl::StrCat("after ", absl::FormatDuration(unused), ": ", status.message()));
  }
  ++tally_.ended;
  forgotten_.push_back(&context);
}

void SimSession::Expect(const absl::Status& status, bool may_be_gone) {
  ++tally_.errors;
  const bool truncated =
      may_be_gone && (absl::IsAborted(status) || absl::IsInvalidArgument(status));
  if (truncated || absl::IsUnavailable(status) || absl::IsDataLoss(status) ||
      absl::IsResourceExhausted(status) || absl::IsDeadlineExceeded(status)) {
    return;
  }
  Fail(absl::StrCat("unexpected ", status.ToString()));
}

}  // namespace annulus::test
