// The coordinator's core under a test's control: workers 1… on peers 11…, and a clock.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core/core.h"
#include "tests/catch.h"

namespace annulus::test {

inline ContextSpec SmallSpec() {
  ContextSpec spec;
  spec.layers = 2;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 16;
  spec.v_head_dim = 16;
  return spec;
}

template <typename T>
std::vector<T> All(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* match = std::get_if<T>(&action)) found.push_back(*match);
  }
  return found;
}

template <typename T>
std::vector<PeerId> SentTo(const Actions& actions) {
  std::vector<PeerId> peers;
  for (const action::Send& send : All<action::Send>(actions)) {
    if (std::holds_alternative<T>(send.body)) peers.push_back(send.peer);
  }
  return peers;
}

inline absl::Status FinishOf(const Actions& actions, CallId call) {
  for (const action::Finish& finish : All<action::Finish>(actions)) {
    if (finish.call != call) continue;
    return finish.status.ok() && finish.items.size() == 1 ? finish.items[0].status : finish.status;
  }
  return absl::UnknownError("not finished");
}

inline std::vector<int64_t> TokensOf(const wire::Resume& resume) {
  std::vector<int64_t> tokens;
  for (const LayerState& layer : resume.layers) tokens.push_back(layer.tokens);
  return tokens;
}

inline request::Work AppendOf(ContextId id, int layer, int64_t start, int64_t tokens,
                              RequestKey key = {}) {
  return {{{id, layer, start, tokens, 0, key, request::WorkItem::Kind::kAppend}}};
}

struct Driver {
  explicit Driver(int workers, CoordinatorLimits limits = {}) : core(limits, absl::Seconds(1)) {
    for (int i = 1; i <= workers; ++i) {
      wire::Hello hello;
      hello.name = absl::StrCat("w", i);
      hello.address = absl::StrCat("addr", i);
      CHECK(SentTo<wire::Welcome>(Handle(event::Heard{PeerId(10 + i), hello})).size() == 1);
    }
  }

  Actions Handle(const Event& event) { return core.Handle(now, event); }
  Actions Answer(PeerId peer, CallId call, absl::Status status = absl::OkStatus(),
                 uint64_t epoch = 0) {
    if (epoch == 0) epoch = this->epoch;
    if (!has_items.contains(call)) {
      return Handle(event::Heard{peer, wire::Done{call, epoch, std::move(status)}});
    }
    return Handle(event::Heard{peer, wire::WorkDone{call, {{epoch, std::move(status)}}}});
  }
  void Beat(PeerId peer) { Handle(event::Heard{peer, wire::Heartbeat{}}); }

  CallId Begin(Request request, Actions* actions, absl::Time deadline = absl::InfiniteFuture()) {
    if (std::holds_alternative<request::Work>(request)) has_items.insert(last_call + 1);
    *actions = Handle(event::Begin{++last_call, std::move(request), deadline});
    return last_call;
  }
  ContextId Create(std::vector<PeerId> peers) {
    Actions actions;
    const CallId call = Begin(request::Create{SmallSpec()}, &actions);
    for (const action::Send& send : All<action::Send>(actions)) {
      epoch = std::get<wire::Open>(send.body).epoch;
    }
    std::vector<PeerId> opened = SentTo<wire::Open>(actions);
    std::sort(opened.begin(), opened.end());  // it may begin at any of them
    CHECK(opened == peers);
    for (const PeerId peer : peers) actions = Answer(peer, call);
    CHECK(FinishOf(actions, call).ok());
    return All<action::Finish>(actions).at(0).context;
  }
  CallId BeginAppend(ContextId id, int64_t start, int64_t tokens, Actions* actions) {
    return Begin(AppendOf(id, 0, start, tokens), actions);
  }
  CallId BeginAttend(ContextId id, int64_t tokens, int64_t kv_len, Actions* actions) {
    return Begin(request::Work{{{id,
                                 0,
                                 kv_len,
                                 0,
                                 tokens,
                                 {},
                                 request::WorkItem::Kind::kAttend,
                                 kv_len - tokens,
                                 {0, kv_len}}}},
                 actions);
  }
  ContextId CreateWithTokens(std::vector<PeerId> peers, int64_t tokens) {
    const ContextId id = Create(peers);
    Actions actions;
    const CallId call = BeginAppend(id, 0, tokens, &actions);
    Handle(event::Prepared{call, {0, 1}});
    for (const PeerId peer : peers) actions = Answer(peer, call);
    CHECK(FinishOf(actions, call).ok());
    return id;
  }
  int64_t Committed(ContextId id) { return core.Describe(id)->tokens[0]; }

  CoordinatorCore core;
  absl::Time now = absl::UnixEpoch();
  CallId last_call = 0;
  std::set<CallId> has_items;  // calls that are answered by a WorkDone
  uint64_t epoch = 0;
};

}  // namespace annulus::test
