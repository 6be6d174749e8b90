// Seeded simulation of whole clusters with delay, reordering, lost links, black holes, crashes and
// pauses. Whatever happens: an answer is the oracle's or an error; what was acknowledged is there;
// what failed left nothing behind; nobody holds what another holds; every call ends.
//
// ANNULUS_SIM_SEEDS=N runs N seeds instead of the usual number, ANNULUS_SIM_SEED=S only that one.
#include <algorithm>
#include <cstdlib>
#include <optional>

#include "base/log.h"
#include "runtime/coordinator/append_work.h"
#include "runtime/coordinator/attend_work.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/sim_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::SimCluster;
using Kind = event::Begin::Kind;

constexpr absl::Duration kSessionsEnd = absl::Seconds(4);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(12);
constexpr absl::Duration kLateMax = absl::Milliseconds(50);  // of an end after its deadline

// Instrumented programs take many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeeds = 40;
#else
constexpr uint64_t kSeeds = 200;
#endif

struct Tally {
  int answers = 0;
  int appends = 0;
  int errors = 0;
  int creates = 0;
  uint64_t trace = 0;  // of everything that happened, in order

  void Note(uint64_t what) { trace = (trace ^ what) * 0x100000001b3u; }
};

// One caller with one context after the other: creates, appends in chunks, attends, releases;
// starts anew when its context is lost.
class Session {
 public:
  Session(SimCluster& cluster, AttendPlanner& planner, uint64_t seed, Tally& tally)
      : cluster_(cluster), planner_(planner), rng_(seed), tally_(tally) {}

  void Run() {
    if (cluster_.now() - absl::UnixEpoch() > kSessionsEnd) return;
    busy_ = true;
    if (id_ == 0) return Create();
    if (lost_ || rng_.Below(25) == 0) return Release();
    if (committed_ == 0 || (committed_ < kv_->k.tokens() && rng_.Below(3) == 0)) return Append();
    Attend();
  }

  bool busy() const { return busy_; }
  ContextId id() const { return id_; }
  const std::vector<std::string>& failures() const { return failures_; }

 private:
  void Create() {
    spec_ = ContextSpec{};
    spec_.heads = 2;
    spec_.kv_heads = static_cast<int>(rng_.Between(1, 2));
    spec_.head_dim = spec_.v_head_dim = 8;
    spec_.dtype = DType::kF32;
    spec_.placement = static_cast<Placement>(rng_.Below(3));
    spec_.partition = {PartitionKind::kBlockCyclic, 1};
    committed_ = 0;
    lost_ = false;
    kv_.emplace(spec_, rng_.Between(100, 400), rng_);
    event::Begin begin;
    begin.kind = Kind::kCreate;
    begin.spec = spec_;
    Begin(begin, nullptr, [this](const action::Finish& finish) {
      if (!finish.status.ok()) return Expect(finish.status, {absl::StatusCode::kUnavailable});
      id_ = finish.context;
      ++tally_.creates;
    });
  }

  void Append() {
    const int64_t n = rng_.Between(1, std::min<int64_t>(150, kv_->k.tokens() - committed_));
    append_ = kv_->Append(id_, 0, committed_, n);
    event::Begin begin;
    begin.kind = Kind::kAppend;
    begin.context = id_;
    begin.begin = committed_;
    begin.tokens = n;
    Begin(begin, std::make_unique<AppendWork>(append_), [this, n](const action::Finish& finish) {
      if (finish.status.ok()) {
        committed_ += n;
        ++tally_.appends;
        if (finish.tokens != committed_) Fail("acknowledged tokens do not add up");
      }
      const absl::StatusOr<ContextInfo> info = cluster_.coordinator().core().Describe(id_);
      if (!info.ok() || info->tokens[0] != committed_) Fail("committed tokens moved");
      Expect(finish.status, kMayHappen);
    });
  }

  void Attend() {
    static const char* const kPatterns[] = {"causal", "full", "window(90) | sink(2)",
                                            "s2(64, 1, 2)"};
    attend_ = AttendRequest{};
    attend_.context = id_;
    attend_.kv_len = rng_.Between(1, committed_);
    const int64_t n = rng_.Between(1, std::min<int64_t>(3, attend_.kv_len));
    q_ = test::RandomTensor(n, spec_.heads, spec_.head_dim, rng_);
    attend_.q = q_;
    attend_.q_start = attend_.kv_len - n;
    attend_.pattern = kPatterns[rng_.Below(4)];
    attend_.plan = PlanKind::kPassQ;
    event::Begin begin;
    begin.kind = Kind::kAttend;
    begin.context = id_;
    begin.begin = attend_.q_start;
    begin.tokens = n;
    begin.kv_len = attend_.kv_len;
    auto work = std::make_unique<AttendWork>(attend_, absl::InfiniteFuture(), planner_,
                                             cluster_.network().clock());
    AttendWork& attend = *work;
    Begin(begin, std::move(work), [this, &attend](const action::Finish& finish) {
      if (!finish.status.ok()) return Expect(finish.status, kMayHappen);
      const absl::StatusOr<AttendResult> result = std::move(attend).TakeResult();
      if (!result.ok()) return Fail("an answer cannot be finalised");
      const Partial expected = test::Oracle(spec_, *kv_, q_, attend_.kv_len, attend_.pattern);
      if (!(test::WorstError(result->out, result->lse, expected) < 1e-4)) Fail("wrong answer");
      ++tally_.answers;
    });
  }

  void Release() {
    event::Begin begin;
    begin.kind = Kind::kRelease;
    begin.context = id_;
    Begin(begin, nullptr, [this](const action::Finish& finish) {
      if (!absl::IsDeadlineExceeded(finish.status)) Expect(finish.status, {});
      id_ = 0;
    });
  }

  void Begin(event::Begin begin, std::unique_ptr<CallWork> work,
             std::function<void(const action::Finish&)> finished) {
    begin.call = call_ = cluster_.NextCall();
    if (rng_.Below(4) == 0) begin.deadline = cluster_.now() + absl::Seconds(rng_.Between(1, 3));
    deadline_ = begin.deadline;
    work_ = std::move(work);
    cluster_.coordinator().Begin(begin, [this, call = begin.call, finished](CallNews news) {
      if (auto* admit = std::get_if<action::Admit>(&news)) {
        // Planning and packing take the caller some time.
        const absl::Time when = cluster_.now() + absl::Microseconds(rng_.Between(0, 3000));
        cluster_.network().At(when, [this, call, admit = std::move(*admit)] {
          if (call != call_ || !busy_) return;  // it has failed meanwhile
          absl::StatusOr<PreparedWork> work = work_->Prepare(admit);
          if (!work.ok()) return Fail(work.status().ToString());
          cluster_.coordinator().Prepared(call, *std::move(work));
        });
      } else if (auto* answer = std::get_if<RankAnswer>(&news)) {
        const absl::Status merged = work_->OnAnswer(std::move(*answer));
        if (!merged.ok()) Fail(merged.ToString());
      } else {
        finished(std::get<action::Finish>(news));
        tally_.Note(static_cast<uint64_t>(std::get<action::Finish>(news).status.code()));
        tally_.Note(static_cast<uint64_t>(absl::ToUnixNanos(cluster_.now())));
        if (cluster_.now() > std::max(deadline_, cluster_.coordinator_resumed()) + kLateMax) {
          Fail("a call ended long after its deadline");
        }
        busy_ = false;
        cluster_.network().At(cluster_.now() + absl::Milliseconds(rng_.Between(0, 30)),
                              [this] { Run(); });
      }
    });
  }

  void Expect(const absl::Status& status, const std::vector<absl::StatusCode>& allowed) {
    if (status.ok()) return;
    ++tally_.errors;
    if (absl::IsDataLoss(status) || absl::IsUnavailable(status)) lost_ = id_ != 0;
    for (const absl::StatusCode code : allowed) {
      if (status.code() == code) return;
    }
    if (absl::IsDeadlineExceeded(status)) return;
    Fail(absl::StrCat("unexpected ", status.ToString()));
  }
  void Fail(std::string what) { failures_.push_back(std::move(what)); }

  static const std::vector<absl::StatusCode> kMayHappen;

  SimCluster& cluster_;
  AttendPlanner& planner_;
  Rng rng_;
  Tally& tally_;
  ContextSpec spec_;
  std::optional<LayerKv> kv_;
  ContextId id_ = 0;
  int64_t committed_ = 0;
  bool lost_ = false;
  bool busy_ = false;
  AppendRequest append_;
  AttendRequest attend_;
  Tensor q_;
  std::unique_ptr<CallWork> work_;
  CallId call_ = 0;
  absl::Time deadline_;
  std::vector<std::string> failures_;
};

const std::vector<absl::StatusCode> Session::kMayHappen = {absl::StatusCode::kUnavailable,
                                                           absl::StatusCode::kDataLoss,
                                                           absl::StatusCode::kResourceExhausted};

// Crashes, pauses, black holes; and new workers for those that are gone.
class Faults {
 public:
  Faults(SimCluster& cluster, uint64_t seed, int workers)
      : cluster_(cluster), rng_(seed), workers_wanted_(workers) {}

  void Run() {
    auto& workers = cluster_.workers();
    if (cluster_.now() - absl::UnixEpoch() > kSessionsEnd) return;
    const absl::Duration length = absl::Milliseconds(rng_.Between(50, 3000));
    const absl::Time end = cluster_.now() + length;
    if (!workers.empty()) {
      const std::string address = workers[rng_.Below(workers.size())]->address();
      switch (rng_.Below(5)) {
        case 0:
          WithWorker(address, [](test::SimWorker& worker) { worker.Crash(); });
          break;
        case 1:
          WithWorker(address, [](test::SimWorker& worker) { worker.Pause(true); });
          cluster_.network().At(end, [this, address] {
            WithWorker(address, [](test::SimWorker& worker) { worker.Pause(false); });
          });
          break;
        case 2:
          Clog(address, cluster_.address(), end);
          break;
        case 3:
          Clog(cluster_.address(), address, end);
          break;
        default:
          cluster_.PauseCoordinator(true);
          cluster_.network().At(end, [this] { cluster_.PauseCoordinator(false); });
          next_ = end;
          break;
      }
    }
    next_ = std::max(next_, cluster_.now()) + absl::Milliseconds(rng_.Between(100, 2500));
    cluster_.network().At(next_, [this] { Run(); });
  }

  void Replace() {
    cluster_.RemoveLost();
    if (static_cast<int>(cluster_.workers().size()) < workers_wanted_ && rng_.Below(400) == 0) {
      cluster_.AddWorker();
    }
  }

 private:
  template <typename Fn>
  void WithWorker(const std::string& address, Fn fn) {
    for (auto& worker : cluster_.workers()) {
      if (worker->address() == address) fn(*worker);
    }
  }
  void Clog(const std::string& from, const std::string& to, absl::Time until) {
    cluster_.network().Clog(from, to);
    cluster_.network().At(until, [this, from, to] { cluster_.network().Unclog(from, to); });
  }

  SimCluster& cluster_;
  Rng rng_;
  const int workers_wanted_;
  absl::Time next_ = absl::InfinitePast();
};

// No rank of a context is held twice, among all that are alive, fenced or not.
bool OwnersAreUnique(SimCluster& cluster, const std::vector<std::unique_ptr<Session>>& sessions) {
  for (const auto& session : sessions) {
    std::set<int> ranks;
    for (const auto& worker : cluster.workers()) {
      const auto shard = worker->store().Find(session->id());
      if (shard.ok() && !ranks.insert((*shard)->rank).second) return false;
    }
  }
  return true;
}

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const int workers = static_cast<int>(rng.Between(1, 4));
  const double drop = rng.Below(3) == 0 ? 0.0005 : 0;
  // Sometimes too little for everybody.
  const int64_t kv_bytes_limit = rng.Below(3) == 0 ? 40 << 10 : 1 << 30;
  SimCluster cluster(seed, workers, drop, kv_bytes_limit);
  AttendPlanner planner{ClusterModel{}};
  Tally tally;
  Faults faults(cluster, rng.Next(), workers);
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 3; ++i) {
    sessions.push_back(std::make_unique<Session>(cluster, planner, rng.Next(), tally));
    Session& session = *sessions.back();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Seconds(1), [&faults] { faults.Run(); });
  bool owners_unique = true;
  const auto unfinished = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); });
  };
  const auto elapsed = [&cluster] { return cluster.now() - absl::UnixEpoch(); };
  for (int64_t step = 0; elapsed() < kSessionsEnd || (unfinished() && elapsed() < kCallsEnd);
       ++step) {
    cluster.Step();
    faults.Replace();
    if (step % 64 == 0) owners_unique &= OwnersAreUnique(cluster, sessions);
  }
  if (!owners_unique) failures->push_back("two workers hold the same rank of a context");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return tally;
}

uint64_t NumberFromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST_CASE("Simulated clusters answer right or not at all") {
  SetLogLevel(LogLevel::kOff);
  const uint64_t only = NumberFromEnvironment("ANNULUS_SIM_SEED", 0);
  const uint64_t first = only != 0 ? only : 1;
  const uint64_t count = only != 0 ? 1 : NumberFromEnvironment("ANNULUS_SIM_SEEDS", kSeeds);
  Tally all;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    std::vector<std::string> failures;
    const Tally tally = Simulate(seed, &failures);
    for (const std::string& failure : failures) {
      FAIL_CHECK("seed " << seed << " (ANNULUS_SIM_SEED=" << seed << " replays it): " << failure);
    }
    all.answers += tally.answers;
    all.appends += tally.appends;
    all.errors += tally.errors;
    all.creates += tally.creates;
  }
  WARN(count << " seeds: " << all.creates << " contexts, " << all.appends << " appends, "
             << all.answers << " right answers, " << all.errors << " errors");
  CHECK(all.answers >= static_cast<int>(count) * 20);
  if (count >= 100) CHECK(all.errors >= static_cast<int>(count) * 2);
}

TEST_CASE("A simulation replays from its seed") {
  SetLogLevel(LogLevel::kOff);
  std::vector<std::string> failures;
  CHECK(Simulate(12, &failures).trace == Simulate(12, &failures).trace);
  CHECK(Simulate(12, &failures).trace != Simulate(13, &failures).trace);
}

}  // namespace
}  // namespace annulus
