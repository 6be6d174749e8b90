#include "bench/scale/simulator.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <queue>
#include <utility>

#include "base/check.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

// A set of ranks as bits.
class RankSet {
 public:
  explicit RankSet(int world) : world_(world), words_((static_cast<size_t>(world) + 63) / 64) {}

  void Insert(int rank) { words_[rank / 64] |= uint64_t{1} << (rank % 64); }
  void Erase(int rank) { words_[rank / 64] &= ~(uint64_t{1} << (rank % 64)); }
  bool Contains(int rank) const { return (words_[rank / 64] >> (rank % 64) & 1) != 0; }

  // The first rank after `rank`, going round, that is in both sets; -1 if there is none.
  static int NextInBoth(const RankSet& a, const RankSet& b, int rank) {
    const int words = static_cast<int>(a.words_.size());
    const int start = (rank + 1) % a.world_;
    const uint64_t from_start = ~uint64_t{0} << (start % 64);
    for (int i = 0; i <= words; ++i) {
      const int word = (start / 64 + i) % words;
      uint64_t bits = a.words_[word] & b.words_[word];
      if (i == 0) bits &= from_start;
      if (i == words) bits &= ~from_start;
      if (bits != 0) return word * 64 + std::countr_zero(bits);
    }
    return -1;
  }

 private:
  int world_;
  std::vector<uint64_t> words_;
};

// One rank's port of one link class in one direction.
struct Port {
  explicit Port(int world, int rank) : ready(world), served(rank) {}
  RankSet ready;  // peers whose next message both ends have posted and that is not under way
  int served;     // the peer whose message went last
};

// All ports of one link class.
struct Links {
  Links(int world, bool inside) : inside(inside), free_out(world), free_in(world) {
    for (int rank = 0; rank < world; ++rank) {
      out.emplace_back(world, rank);
      in.emplace_back(world, rank);
      free_out.Insert(rank);
      free_in.Insert(rank);
    }
  }
  bool inside;
  std::vector<Port> out;
  std::vector<Port> in;
  RankSet free_out;
  RankSet free_in;
};

// The messages of each (source, destination), in the order in which they pair.
class PairQueues {
 public:
  explicit PairQueues(const Script& script)
      : world_(static_cast<size_t>(script.world())), queues_(world_ * world_) {
    const std::vector<Message>& messages = script.messages();
    for (const Message& message : messages) ++Of(message.source, message.destination).end;
    uint32_t begin = 0;
    for (Queue& queue : queues_) {
      begin += std::exchange(queue.end, begin);
      queue.next = queue.end;
    }
    messages_.resize(messages.size());
    for (const Message& message : messages) {
      messages_[Of(message.source, message.destination).end++] = message;
    }
  }

  // The next message from source to destination, or nullptr after the last.
  const Message* Front(int source, int destination) const {
    const Queue& queue = queues_[Pair(source, destination)];
    return queue.next == queue.end ? nullptr : &messages_[queue.next];
  }
  void Pop(int source, int destination) { ++Of(source, destination).next; }

 private:
  struct Queue {  // of messages_
    uint32_t next = 0;
    uint32_t end = 0;
  };
  size_t Pair(int source, int destination) const {
    return static_cast<size_t>(source) * world_ + static_cast<size_t>(destination);
  }
  Queue& Of(int source, int destination) { return queues_[Pair(source, destination)]; }

  const size_t world_;
  std::vector<Queue> queues_;
  std::vector<Message> messages_;  // pair after pair: what is looked at together lies together
};

class Simulation {
 public:
  Simulation(const Script& script, const ClusterModel& cluster, const PostObserver& observer)
      : script_(script),
        cluster_(cluster),
        observer_(observer),
        inside_(script.world(), true),
        between_(script.world(), false),
        queues_(script),
        ranks_(static_cast<size_t>(script.world())) {}

  SimulatedRun Run() {
    for (int rank = 0; rank < script_.world(); ++rank) Enter(rank);
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      switch (event.kind) {
        case Event::kComputed:
          Done(event.rank);
          break;
        case Event::kDelivered:
          Deliver(event.rank, event.peer);
          break;
        case Event::kMerged:
          Enter(event.rank);
          break;
      }
    }
    SimulatedRun run;
    run.seconds = now_;
    for (const Rank& rank : ranks_) {
      ANNULUS_CHECK(rank.round == script_.rounds());
      run.ranks.push_back(rank.time);
      run.ranks.back().idle_s = now_ - rank.entered_s;
    }
    return run;
  }

 private:
  struct Rank {
    int round = -1;
    int64_t pending = 0;  // messages of the round, and its computing
    double entered_s = 0;
    RankTime time;
  };
  struct Event {
    enum Kind : uint8_t { kComputed, kDelivered, kMerged };
    double time;
    uint64_t order;  // events of one time happen as they were made
    Kind kind;
    int16_t rank;
    int16_t peer;  // kDelivered: to which `rank` has sent
    bool operator>(const Event& other) const {
      return std::pair(time, order) > std::pair(other.time, other.order);
    }
  };

  Links& LinksOf(int a, int b) {
    return Inside(cluster_, a, b, script_.world()) ? inside_ : between_;
  }
  void After(double seconds, Event::Kind kind, int rank, int peer = 0) {
    events_.push(
        {now_ + seconds, made_++, kind, static_cast<int16_t>(rank), static_cast<int16_t>(peer)});
  }

  // A rank enters its next round, or ends.
  void Enter(int id) {
    Rank& rank = ranks_[id];
    ++rank.round;
    rank.entered_s = now_;
    if (rank.round == script_.rounds()) return;
    const auto sends = script_.Sends(rank.round, id), receives = script_.Receives(rank.round, id);
    if (observer_) observer_(id, sends, receives);
    const double compute_s = script_.compute_s(rank.round, id);
    rank.time.compute_s += compute_s + script_.merge_s(rank.round, id);
    rank.pending = static_cast<int64_t>(sends.size() + receives.size()) + 1;
    After(compute_s, Event::kComputed, id);
    for (uint32_t i : sends) Offer(id, script_.messages()[i].destination);
    for (uint32_t i : receives) Offer(script_.messages()[i].source, id);
  }

  // One of what `id` waits for in its round is done.
  void Done(int id) {
    Rank& rank = ranks_[id];
    if (--rank.pending > 0) return;
    // Where nothing is waited for it may come out below nothing by a rounding.
    rank.time.waiting_s += std::max(0.0, now_ - rank.entered_s - script_.compute_s(rank.round, id));
    After(script_.merge_s(rank.round, id), Event::kMerged, id);
  }

  // Marks the pair's next message ready if both ends have posted it, and starts it if it can.
  void Offer(int source, int destination) {
    const Message* message = queues_.Front(source, destination);
    if (message == nullptr || ranks_[source].round < message->round ||
        ranks_[destination].round < message->round) {
      return;
    }
    Links& links = LinksOf(source, destination);
    links.out[source].ready.Insert(destination);
    links.in[destination].ready.Insert(source);
    StartFrom(links, source);
  }

  void StartFrom(Links& links, int source) {
    if (!links.free_out.Contains(source)) return;
    const Port& port = links.out[source];
    const int peer = RankSet::NextInBoth(port.ready, links.free_in, port.served);
    if (peer >= 0) Start(links, source, peer);
  }
  void StartTo(Links& links, int destination) {
    if (!links.free_in.Contains(destination)) return;
    const Port& port = links.in[destination];
    const int peer = RankSet::NextInBoth(port.ready, links.free_out, port.served);
    if (peer >= 0) Start(links, peer, destination);
  }

  void Start(Links& links, int source, int destination) {
    const Message& message = *queues_.Front(source, destination);
    Port &out = links.out[source], &in = links.in[destination];
    out.ready.Erase(destination);
    in.ready.Erase(source);
    out.served = destination;
    in.served = source;
    links.free_out.Erase(source);
    links.free_in.Erase(destination);
    After(LinkSeconds(cluster_, links.inside, message.bytes, 1), Event::kDelivered, source,
          destination);
  }

  void Deliver(int source, int destination) {
    Links& links = LinksOf(source, destination);
    links.free_out.Insert(source);
    links.free_in.Insert(destination);
    queues_.Pop(source, destination);
    Offer(source, destination);
    Done(source);
    Done(destination);
    StartFrom(links, source);
    StartTo(links, destination);
  }

  const Script& script_;
  const ClusterModel& cluster_;
  const PostObserver& observer_;
  Links inside_;
  Links between_;
  PairQueues queues_;
  std::vector<Rank> ranks_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t made_ = 0;
  double now_ = 0;
};

}  // namespace

SimulatedRun Simulate(const Script& script, const ClusterModel& cluster,
                      const PostObserver& observer) {
  return Simulation(script, cluster, observer).Run();
}

TimeSplit SimulateSplit(const Script& script, const ClusterModel& cluster) {
  ClusterModel no_latency = cluster;
  no_latency.inside_latency_s = no_latency.between_latency_s = 0;
  ClusterModel free = no_latency;
  free.inside_bytes_per_s = free.between_bytes_per_s = std::numeric_limits<double>::infinity();
  const ClusterModel* models[] = {&cluster, &no_latency, &free};
  std::array<SimulatedRun, 3> runs;
  ThreadPool pool(0);
  pool.ParallelFor(3, [&](int64_t i) { runs[i] = Simulate(script, *models[i]); });

  TimeSplit split;
  split.run = std::move(runs[0]);
  for (const RankTime& rank : split.run.ranks) split.compute_s += rank.compute_s;
  split.compute_s /= script.world();
  // Messages that end sooner may meet in a worse order: a saving below nothing is none.
  const double without_latency_s = std::min(runs[1].seconds, split.run.seconds);
  const double free_s = std::min(runs[2].seconds, without_latency_s);
  // Ranks in balance may come out below nothing by a rounding.
  split.imbalance_s = std::max(0.0, free_s - split.compute_s);
  split.bandwidth_s = without_latency_s - free_s;
  split.latency_s = split.run.seconds - without_latency_s;
  return split;
}

}  // namespace annulus
