// FairQueue: calls that wait for their turn, by tenant. Deficit round robin (Shreedhar and
// Varghese, 1995): each round gives every tenant that waits the same cost to spend, and what it
// does not spend it keeps for as long as it waits; so tenants get equal shares of what is served,
// whatever their calls cost and however many they send. The queue is bounded in length; where it is
// full, whoever has most calls in it loses the last of them to one of a tenant that has fewer. A
// call that would wait for longer than it can is refused at once. It keeps no time of its own and
// wakes nobody. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <unordered_map>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace annulus {

class FairQueue {
 public:
  struct Call {
    double cost = 1;                             // in units that all calls share
    absl::Time latest = absl::InfiniteFuture();  // its turn comes by then, or it is refused

    const std::string& tenant() const { return tenant_; }  // once it has been added

   private:
    friend class FairQueue;
    std::string tenant_;
  };
  // Whether the tenant whose next call this is may have a turn.
  using May = absl::FunctionRef<bool(const Call& next)>;

  // Why a call cannot wait.
  enum class Verdict {
    kWaits,
    kFull,     // the queue, or the tenant's half of it
    kTooLate,  // its turn would come after `latest`
  };

  explicit FairQueue(size_t waiting_max) : waiting_max_(waiting_max) {}
  FairQueue(const FairQueue&) = delete;
  FairQueue& operator=(const FairQueue&) = delete;

  bool empty() const { return waiting_ == 0; }
  size_t waiting() const { return waiting_; }
  std::map<std::string, int64_t> WaitingByTenant() const;

  // What Add would say.
  Verdict Judge(const Call& call, const std::string& tenant, absl::Time now) const;
  // The call waits from now on, at its place in memory, until Next or Remove. Another one may have
  // lost its place: it is `*pushed_out` then, else that is null.
  Verdict Add(Call* call, const std::string& tenant, absl::Time now, Call** pushed_out);
  // It does not want to wait any more.
  void Remove(Call* call);
  // Whose turn it is of the tenants that may have one; that call waits no longer. Null: nobody's.
  Call* Next(May may);

  // Calls of this cost have ended, so that it is known how fast they do.
  void NoteServed(double cost, absl::Time now);
  // How long a call of this cost would wait, if it is known how fast calls are served; else 0.
  absl::Duration ExpectedWait(const std::string& tenant, double cost) const;

 private:
  struct Turn {
    std::string tenant;
    std::list<Call*> calls;
    double cost = 0;     // of these
    double deficit = 0;  // what it may spend
    bool begun = false;  // it has got its quantum for this round
  };
  using Turns = std::list<Turn>;

  size_t WaitingOf(const std::string& tenant) const;
  Turns::const_iterator Longest() const;
  Call* Take(Turns::iterator turn, std::list<Call*>::iterator at);
  void SkipRounds(May may);

  const size_t waiting_max_;
  size_t waiting_ = 0;
  double cost_ = 0;  // of all that wait
  Turns turns_;      // of the tenants that wait; the first has its turn
  std::unordered_map<std::string, Turns::iterator> by_tenant_;
  // What was served in the period that began then, and the rate of those before, per second; while
  // calls wait, since else it says how many came.
  absl::Time period_ = absl::InfiniteFuture();
  double served_ = 0;
  double rate_ = 0;  // 0: unknown
};

}  // namespace annulus
