// The coordinator's core under a test's control: workers 1… on peers 11…, and a clock.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core.h"
#include "tests/catch.h"

namespace annulus::test {

using Kind = event::Begin::Kind;

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
    if (finish.call == call) return finish.status;
  }
  return absl::UnknownError("not finished");
}

inline std::vector<int64_t> TokensOf(const wire::Resume& resume) {
  std::vector<int64_t> tokens;
  for (const LayerState& layer : resume.layers) tokens.push_back(layer.tokens);
  return tokens;
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
    wire::Done done;
    done.request = call;
    done.epoch = epoch != 0 ? epoch : this->epoch;
    done.status = std::move(status);
    return Handle(event::Heard{peer, done});
  }
  void Beat(PeerId peer) { Handle(event::Heard{peer, wire::Heartbeat{}}); }

  CallId Begin(event::Begin begin, Actions* actions) {
    begin.call = ++last_call;
    *actions = Handle(begin);
    return begin.call;
  }
  ContextId Create(std::vector<PeerId> peers) {
    event::Begin begin;
    begin.kind = Kind::kCreate;
    begin.spec = SmallSpec();
    Actions actions;
    const CallId call = Begin(begin, &actions);
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
    event::Begin begin;
    begin.kind = Kind::kAppend;
    begin.context = id;
    begin.begin = start;
    begin.tokens = tokens;
    return Begin(begin, actions);
  }
  CallId BeginAttend(ContextId id, int64_t tokens, int64_t kv_len, Actions* actions) {
    event::Begin begin;
    begin.kind = Kind::kAttend;
    begin.context = id;
    begin.begin = kv_len - tokens;
    begin.tokens = tokens;
    begin.kv_len = kv_len;
    return Begin(begin, actions);
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
  uint64_t epoch = 0;
};

}  // namespace annulus::test
