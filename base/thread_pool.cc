#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <tuple>
#include <utility>

#include "base/log.h"

namespace annulus {
namespace {

std::vector<int> OurCores() {
  std::vector<int> cores;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
  }
  if (cores.empty()) cores.resize(std::max(1u, std::thread::hardware_concurrency()));
  return cores;
}

// Only speed depends on it, so that a refusal may be ignored.
void StayOn(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// Takes the calling thread to that core, if it may run there, and lets it go again.
void GoTo(int core) {
  cpu_set_t before;
  if (sched_getaffinity(0, sizeof(before), &before) != 0 || !CPU_ISSET(core, &before)) return;
  StayOn(core);
  sched_setaffinity(0, sizeof(before), &before);
}

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

// Loops that are not urgent wait for urgent ones for so long at most, and after that have a turn of
// a quarter of it: they keep a fifth of the time.
constexpr int64_t kPatienceNs = 2'000'000;
constexpr int64_t kWaitPerRun = 4;
constexpr int64_t kYieldNs = 100'000;

}  // namespace

struct ThreadPool::Loop {
  Loop(int64_t items, absl::FunctionRef<void(int64_t)> body_of, Turn turn_of)
      : count(items), body(body_of), turn(turn_of) {}

  const int64_t count;
  const absl::FunctionRef<void(int64_t)> body;
  const Turn turn;
  std::atomic<int64_t> next{0};
  // Under the mutex:
  int working = 0;        // threads
  bool waits = false;     // its caller, for a place or for the others to end
  int64_t served_ns = 0;  // of its owner
  int64_t tenant_served_ns = 0;
  uint64_t last_run = 0;  // counts the turns of all
  std::condition_variable caller;

  bool is_tenants(const Loop& other) const { return turn.tenant == other.turn.tenant; }
  bool is_owners(const Loop& other) const {
    return is_tenants(other) && turn.owner == other.turn.owner;
  }
  bool has_items() const { return next.load(std::memory_order_relaxed) < count; }
};

// What a thread knows of itself.
struct ThreadPool::Share {
  const ThreadPool* inside = nullptr;  // whose item it runs
  int64_t since_ns = 0;                // it runs an item that is not urgent, without a pause
  int64_t yielded_ns = 0;              // when it last left the core to others
  int64_t away_ns = 0;                 // spent in LetUrgentGoFirst and YieldCore
  int64_t debt_ns = 0;                 // how long it waited, less what it ran since
  bool insists = false;                // it has waited for as long as it must

  // It has run until now.
  void Ran(int64_t now_ns) {
    debt_ns -= kWaitPerRun * (now_ns - since_ns);
    since_ns = now_ns;
    if (debt_ns > 0) return;
    debt_ns = 0;
    insists = false;
  }
};

thread_local ThreadPool::Share ThreadPool::share_;

ThreadPool::ThreadPool(int threads) {
  const std::vector<int> cores = OurCores();
  const size_t all = threads > 0 ? static_cast<size_t>(threads) : cores.size();
  workers_.reserve(all - 1);
  loops_.reserve(16);
  if (threads <= 0 && all > 1) callers_core_ = cores[0];
  // A system that has no more threads makes the pool smaller, and not the caller fail.
  try {
    for (size_t i = 1; i < all; ++i) {
      workers_.emplace_back([this, core = threads > 0 ? -1 : cores[i]] {
        if (core >= 0) StayOn(core);
        Work();
      });
    }
  } catch (const std::system_error& error) {
    Log(LogLevel::kWarning, "fewer threads",
        {{"wanted", all}, {"has", this->threads()}, {"why", error.what()}});
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Begin(Loop& loop) {
  // It does not catch up on what others had before it came, nor do they pay for it now.
  const auto is_long = [](const Loop* other) { return !other->turn.urgent; };
  if (is_long(&loop) && std::count_if(loops_.begin(), loops_.end(), is_long) == 1) {
    shared_since_ns_ = NowNs();
  }
  // The nearest: of its owner, or else the one of its tenant, or else of all, that had the least.
  const auto far = [&](const Loop& other) {
    if (other.is_owners(loop)) return std::make_pair(0, int64_t{0});
    if (other.is_tenants(loop)) return std::make_pair(1, other.served_ns);
    return std::make_pair(2, other.tenant_served_ns);
  };
  const Loop* nearest = nullptr;
  for (const Loop* other : loops_) {
    if (other->turn.urgent) continue;
    if (nearest == nullptr || far(*other) < far(*nearest)) nearest = other;
  }
  if (nearest != nullptr) {
    loop.tenant_served_ns = nearest->tenant_served_ns;
    if (nearest->is_tenants(loop)) loop.served_ns = nearest->served_ns;
  }
  loops_.push_back(&loop);
  all_.store(static_cast<int>(loops_.size()), std::memory_order_relaxed);
  if (loop.turn.urgent) urgent_.fetch_add(1, std::memory_order_relaxed);
}

void ThreadPool::End(Loop& loop) {
  std::erase(loops_, &loop);
  all_.store(static_cast<int>(loops_.size()), std::memory_order_relaxed);
  if (loop.turn.urgent) urgent_.fetch_sub(1, std::memory_order_relaxed);
}

ThreadPool::Loop* ThreadPool::Next(bool urgent_only) const {
  Loop* next = nullptr;
  for (Loop* loop : loops_) {
    if (!loop->has_items()) continue;
    if (loop->turn.urgent) return loop;
    if (urgent_only) continue;
    // Those of one tenant have had the same, and so have those of one owner.
    const auto before = [](const Loop* a) {
      return std::make_tuple(a->tenant_served_ns, a->served_ns, a->last_run);
    };
    if (next == nullptr || before(loop) < before(next)) next = loop;
  }
  return next;
}

void ThreadPool::Charge(const Loop& loop, int64_t ns) {
  for (Loop* own : loops_) {
    if (own->turn.urgent || !own->is_tenants(loop)) continue;
    own->tenant_served_ns += ns;
    if (own->is_owners(loop)) own->served_ns += ns;
  }
}

// A caller that is on the core of one of the pool's threads keeps it from coming, or shares that
// core with it: until the system sees that, which takes it many ms on a busy machine. So it goes to
// `core`, unless that is -1, between two items.
void ThreadPool::RunItems(Loop& loop, int core) {
  int64_t i = loop.next.fetch_add(1, std::memory_order_relaxed);
  while (i < loop.count) {
    loop.body(i);
    if (!loop.turn.urgent) {
      YieldCore();
      // Another loop is due, perhaps.
      if (all_.load(std::memory_order_relaxed) > 1) return;
    }
    i = loop.next.fetch_add(1, std::memory_order_relaxed);
    if (core >= 0 && i < loop.count && sched_getcpu() != core) GoTo(core);
  }
}

void ThreadPool::RunSome(Loop& loop, int core, Lock& lock) {
  int& threads = loop.turn.urgent ? urgent_running_ : running_;
  ++threads;
  ++loop.working;
  loop.last_run = ++turns_;
  lock.unlock();
  const ThreadPool* const outside = std::exchange(share_.inside, this);
  if (loop.turn.urgent) {
    RunItems(loop, core);
    lock.lock();
  } else {
    const int64_t begin_ns = NowNs();
    const int64_t away_before_ns = share_.away_ns;
    share_.since_ns = begin_ns;
    RunItems(loop, core);
    const int64_t end_ns = NowNs();
    share_.Ran(end_ns);
    lock.lock();
    const int64_t away_ns = share_.away_ns - away_before_ns;
    Charge(loop, std::max<int64_t>(0, end_ns - std::max(begin_ns, shared_since_ns_) - away_ns));
  }
  share_.inside = outside;
  --threads;
  if (--loop.working == 0 && loop.waits && !loop.has_items()) loop.caller.notify_one();
}

// Some thread has left: another one may have something to do.
void ThreadPool::PassOn() {
  if (paused_ > 0 && has_room()) return room_.notify_one();
  if (!has_place()) return;
  bool items = false;
  for (Loop* loop : loops_) {
    if (!loop->has_items()) continue;
    items = true;
    if (loop->waits) return loop->caller.notify_one();
  }
  if (items && idle_ > 0) wake_.notify_one();
}

void ThreadPool::RunAlone(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  for (int64_t i = 0; i < count; ++i) body(i);
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body, Turn turn) {
  if (count <= 0) return;
  if (share_.inside == this) return RunAlone(count, body);
  Loop loop(count, body, turn);
  Lock lock(mutex_);
  Begin(loop);
  const int core = loops_.size() == 1 ? callers_core_ : -1;
  if (count > 1 && idle_ > 0) {
    lock.unlock();
    wake_.notify_all();
    lock.lock();
  }
  while (loop.has_items() || loop.working > 0) {
    // Others take items without the mutex, perhaps the last ones just now.
    Loop* const next = turn.urgent ? &loop : Next(/*urgent_only=*/false);
    if (loop.has_items() && next != nullptr && (turn.urgent || has_place())) {
      RunSome(*next, core, lock);
      continue;
    }
    PassOn();
    loop.waits = true;
    loop.caller.wait(lock);
    loop.waits = false;
  }
  End(loop);
  PassOn();
}

void ThreadPool::LetUrgentGoFirst() {
  const int64_t begin_ns = NowNs();
  Share& share = share_;
  share.Ran(begin_ns);
  if (share.insists) return;
  const auto until = std::chrono::steady_clock::time_point(
      std::chrono::nanoseconds(begin_ns + kPatienceNs - share.debt_ns));
  Lock lock(mutex_);
  ++away_;
  while (std::chrono::steady_clock::now() < until) {
    if (Loop* urgent = Next(/*urgent_only=*/true); urgent != nullptr) {
      RunSome(*urgent, -1, lock);
    } else if (has_room()) {
      break;
    } else {
      ++paused_;
      room_.wait_until(lock, until);
      --paused_;
    }
  }
  --away_;
  PassOn();
  lock.unlock();
  share.since_ns = NowNs();
  const int64_t waited_ns = share.since_ns - begin_ns;
  share.away_ns += waited_ns;
  share.debt_ns += waited_ns;
  if (share.debt_ns >= kPatienceNs) share.insists = true;
}

// Where two threads that compute share a core, the system may let one that has woken up wait for
// its next tick, which is up to 4 ms away. Who has waited for urgent loops keeps the turn that this
// earned, and time away is nobody's turn.
void ThreadPool::YieldCore() {
  Share& share = share_;
  const int64_t now_ns = NowNs();
  if (share.insists || now_ns - share.yielded_ns < kYieldNs) return;
  sched_yield();
  share.yielded_ns = NowNs();
  share.since_ns += share.yielded_ns - now_ns;
  share.away_ns += share.yielded_ns - now_ns;
}

void ThreadPool::Work() {
  Lock lock(mutex_);
  while (!stop_) {
    Loop* const next = Next(/*urgent_only=*/false);
    if (next != nullptr && (next->turn.urgent || has_place())) {
      RunSome(*next, -1, lock);
      continue;
    }
    ++idle_;
    wake_.wait(lock);
    --idle_;
  }
}

}  // namespace annulus
