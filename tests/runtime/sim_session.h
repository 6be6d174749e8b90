// One caller of a simulated cluster: creates contexts, appends, steps, attends, forks, truncates
// and releases them, and does some things twice at the same time, as a client that retries does. It
// knows what every context must hold, and compares every answer with the oracle's.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/attend_call.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/sim_cluster.h"

namespace annulus::test {

struct Tally {
  int64_t answers = 0;
  int64_t appends = 0;
  int64_t errors = 0;
  int64_t creates = 0;
  int64_t forks = 0;
  int64_t truncates = 0;
  int64_t repetitions = 0;
  int64_t recovered = 0;         // contexts, after a restart of the coordinator
  int64_t lost = 0;              // by it, or with their workers
  int64_t back = 0;              // after they were lost, with their workers
  int64_t degraded_answers = 0;  // by contexts that have lost a copy
  int64_t ended = 0;             // contexts that ended by themselves
  int64_t left = 0;              // workers, in good order
  int64_t merges = 0;            // partials that workers sent to each other
  uint64_t trace = 0;            // of everything that happened, in order

  void Note(uint64_t what) { trace = (trace ^ what) * 0x100000001b3u; }

  // Adds the counts; a trace is of one simulation.
  Tally& operator+=(const Tally& other) {
    for (int64_t Tally::*count :
         {&Tally::answers, &Tally::appends, &Tally::errors, &Tally::creates, &Tally::forks,
          &Tally::truncates, &Tally::repetitions, &Tally::recovered, &Tally::lost, &Tally::back,
          &Tally::degraded_answers, &Tally::ended, &Tally::left, &Tally::merges}) {
      this->*count += other.*count;
    }
    return *this;
  }
};

class SimSession {
 public:
  // Starts nothing new from `end` on.
  SimSession(SimCluster& cluster, CallPlanner& planner, uint64_t seed, absl::Time end, Tally& tally)
      : cluster_(cluster),
        planner_(planner),
        rng_(seed),
        client_(rng_.Next() | 1),
        caller_{"client", absl::StrCat("tenant ", client_), Role::kTenant},
        end_(end),
        tally_(tally) {}

  void Run();
  // All contexts with two copies, and not one of three.
  void AlwaysTwoCopies() { always_two_ = true; }
  // Waits for contexts that are lost, whose workers may come back with them.
  void WaitForLost() { waits_for_lost_ = true; }
  // Contexts have leases of so many seconds, and some are evictable: they may end by themselves,
  // and not while they are used.
  void LeaseFor(double lease) { lease_ = lease; }
  // Contexts of so many blocks that many ranks hold some, and no attends, whose ranks would wait
  // for each other in one thread.
  void StepOverManyRanks() {
    tokens_max_ = 12 * kBlockTokens;
    many_ranks_ = true;
  }
  // Looks at each of its contexts once nothing happens any more: what was acknowledged is there.
  void CheckAllThere();

  // Starts nothing new any more.
  void End() { end_ = cluster_.now(); }

  bool busy() const { return in_flight_ > 0; }
  std::vector<ContextId> ids() const {
    std::vector<ContextId> ids;
    for (const Context& context : contexts_) ids.push_back(context.id);
    return ids;
  }
  const std::vector<std::string>& failures() const { return failures_; }

 private:
  struct Context {
    ContextSpec spec;
    LayerKv kv;  // what it holds; beyond `committed`, what was tried
    ContextId id = 0;
    int64_t committed = 0;
    int64_t horizon = 0;  // 0 unless it lets go of blocks
    // The append that was tried last.
    RequestKey key;
    TokenRange tried;
    bool went_well = false;  // in this round
    // What failed may be undone or not, should the coordinator be lost now.
    bool doubtful = false;
    bool degraded = false;  // a copy is missing, since this round at the latest
    bool lost = false;      // and waited for
    bool gone = false;      // it has ended by itself
    absl::Time used;        // last, by a call that ended

    const std::string& pattern() const { return PatternOf(spec, 0, ""); }
  };
  // A call that runs: what it borrows lives as long.
  struct Call {
    CallId id = 0;
    absl::Time deadline;
    std::vector<Context*> contexts;
    std::vector<StepRequest> steps;
    std::vector<Tensor> queries;
    AppendRequest append;
    AttendRequest attend;
    std::unique_ptr<BatchCall> work;
    std::function<void(const action::Finish&)> finished;
  };

  void Create();
  void Append(Context& context);
  void Attend(Context& context);
  void Step();
  void Truncate(Context& context);
  void Fork(Context& context);
  void Release(Context& context);

  void StartAppend(Context& context, TokenRange tokens, absl::Duration later);
  void StartStep(const std::vector<Context*>& contexts, const std::vector<int64_t>& queries,
                 absl::Duration later);
  void NewTry(Context& context, int64_t tokens);
  void Appended(Context& context, const absl::Status& status, int64_t tokens);

  void Begin(Request request, std::shared_ptr<Call> call, absl::Duration later);
  void OnNews(const std::shared_ptr<Call>& call, CallNews news);
  void RoundEnded();
  void Settle(Context& context);
  void CheckOwner(const ContextInfo& info);
  void CheckQuotas();
  bool FindOut();
  void FindOut(Context& context, int64_t tokens);
  // As Expect, of a call on this context.
  void ExpectOf(Context& context, const absl::Status& status, bool may_be_gone = false);
  void Expect(const absl::Status& status, bool may_be_gone);
  void Fail(std::string what) { failures_.push_back(std::move(what)); }

  SimCluster& cluster_;
  CallPlanner& planner_;
  Rng rng_;
  const uint64_t client_;
  const Caller caller_;  // each session is a tenant of its own
  absl::Time end_;
  Tally& tally_;
  std::list<Context> contexts_;
  std::vector<Context*> forgotten_;     // released; erased when the round ends
  std::vector<ContextId> left_behind_;  // of these, where the release failed: some may be there yet
  int in_flight_ = 0;
  int64_t tokens_max_ = 200;
  bool many_ranks_ = false;
  bool always_two_ = false;
  double lease_ = 0;
  bool waits_for_lost_ = false;
  uint64_t sequence_ = 0;
  int coordinators_ = 1;  // that the contexts were last compared with
  std::vector<std::string> failures_;
};

}  // namespace annulus::test
