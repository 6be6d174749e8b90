#include "bench/plans/ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/ucx/ucx_fabric.h"
#ifdef ANNULUS_NCCL
#include "comm/nccl/nccl_exchange.h"
#endif

namespace annulus {
namespace {

constexpr uint64_t kControlChannel = 0;

#ifdef ANNULUS_NCCL
constexpr bool kWithNccl = true;
constexpr absl::Duration kNcclTimeout = absl::Minutes(2);  // to make connections between GPUs

absl::StatusOr<std::unique_ptr<Exchange>> OpenNccl(MpiSession& session, uint64_t channel) {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Exchange> control,
                           session.OpenExchange(channel, session.world()));
  return OpenNcclExchange(std::move(control), absl::Now() + kNcclTimeout);
}
#else
constexpr bool kWithNccl = false;

absl::StatusOr<std::unique_ptr<Exchange>> OpenNccl(MpiSession&, uint64_t) {
  return absl::InternalError("there is no NCCL in this program");
}
#endif

// Where one rank runs: a node, and its cores there.
struct Place {
  char node[256] = {};
  cpu_set_t cores;
};

Place OurPlace() {
  Place place;
  (void)gethostname(place.node, sizeof place.node - 1);
  CPU_ZERO(&place.cores);
  if (sched_getaffinity(0, sizeof place.cores, &place.cores) != 0) CPU_SET(0, &place.cores);
  return place;
}

Machinery LookAt(const std::vector<Place>& places, int rank) {
  const Place& own = places[static_cast<size_t>(rank)];
  struct Node {
    int ranks = 0;
    cpu_set_t cores = {};
  };
  std::map<std::string, Node> nodes;
  Machinery all;
  int sharing = 0;  // ranks, this one included, that may run on one of our cores
  for (const Place& place : places) {
    Node& node = nodes[place.node];
    if (&place == &own) all.place = node.ranks;
    ++node.ranks;
    CPU_OR(&node.cores, &node.cores, &place.cores);
    cpu_set_t common;
    CPU_AND(&common, &place.cores, &own.cores);
    if (std::strcmp(place.node, own.node) == 0 && CPU_COUNT(&common) > 0) ++sharing;
  }
  all.nodes = static_cast<int>(nodes.size());
  for (const auto& [name, node] : nodes) all.oversubscribed |= node.ranks > CPU_COUNT(&node.cores);
  // Cores of our own take a thread each that stays on it; shared ones are divided.
  all.threads = sharing == 1 ? 0 : std::max(1, CPU_COUNT(&own.cores) / sharing);
  return all;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ranks>> Ranks::Start() {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<MpiSession> session, MpiSession::Start());
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Exchange> control,
                           session->OpenExchange(kControlChannel, session->world()));
  return std::unique_ptr<Ranks>(new Ranks(std::move(session), std::move(control)));
}

Ranks::Ranks(std::unique_ptr<MpiSession> session, std::unique_ptr<Exchange> control)
    : session_(std::move(session)), control_(std::move(control)) {}

// By dissemination: after the round of distance d each rank knows of the 2·d − 1 before it.
absl::Status Ranks::Barrier() {
  for (int distance = 1; distance < world(); distance *= 2) {
    const char nothing = 0;
    char none = 0;
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                             control_->Post({{(rank() + distance) % world(), &nothing, 0}},
                                            {{(rank() + world() - distance) % world(), &none, 0}}));
    ANNULUS_RETURN_IF_ERROR(control_->Wait(ticket, absl::InfiniteFuture()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Ranks::Gather(absl::string_view mine) {
  Rendezvous& rendezvous = session_->rendezvous();
  const std::string key = absl::StrCat("gather ", ++gathers_, " of ");
  ANNULUS_RETURN_IF_ERROR(rendezvous.Put(absl::StrCat(key, rank()), mine));
  std::vector<std::string> all;
  for (int other = 0; other < world(); ++other) {
    ANNULUS_ASSIGN_OR_RETURN(std::string theirs,
                             rendezvous.Get(absl::StrCat(key, other), absl::InfiniteFuture()));
    all.push_back(std::move(theirs));
  }
  return all;
}

absl::StatusOr<std::vector<std::vector<double>>> Ranks::Gather(const std::vector<double>& mine) {
  const absl::string_view bytes(reinterpret_cast<const char*>(mine.data()),
                                mine.size() * sizeof(double));
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<std::string> texts, Gather(bytes));
  std::vector<std::vector<double>> all;
  for (const std::string& text : texts) {
    all.emplace_back(text.size() / sizeof(double));
    if (!text.empty()) std::memcpy(all.back().data(), text.data(), text.size());
  }
  return all;
}

absl::Status Ranks::AllOk(const absl::Status& mine) {
  // A digit tells causes from those who only lost their peers.
  const int weight = mine.ok() ? 0 : absl::IsUnavailable(mine) ? 1 : 2;
  const int code = static_cast<int>(mine.code());
  ANNULUS_ASSIGN_OR_RETURN(
      const std::vector<std::string> all,
      Gather(absl::StrCat(weight, absl::Dec(code, absl::kZeroPad2), mine.message())));
  const auto worst = std::max_element(all.begin(), all.end(),
                                      [](const auto& a, const auto& b) { return a[0] < b[0]; });
  if ((*worst)[0] == '0') return absl::OkStatus();
  const auto worst_code =
      static_cast<absl::StatusCode>(((*worst)[1] - '0') * 10 + (*worst)[2] - '0');
  const std::string text = worst->substr(3);
  if (worst_code == absl::StatusCode::kInvalidArgument) return absl::InvalidArgumentError(text);
  return absl::Status(worst_code, absl::StrCat("rank ", worst - all.begin(), ": ", text));
}

absl::StatusOr<Machinery> Ranks::Look() {
  const Place own = OurPlace();
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                           Gather({reinterpret_cast<const char*>(&own), sizeof own}));
  std::vector<Place> places(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) std::memcpy(&places[i], texts[i].data(), sizeof own);
  return LookAt(places, rank());
}

absl::Status Ranks::UseTransport(absl::string_view name, const std::string& ucx_transports) {
  if (name == "mpi") return absl::OkStatus();
  if (name == "nccl") {
    nccl_ = true;
    if (kWithNccl) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "--transport: nccl; expected mpi or ucx: this program has no NCCL in it");
  }
  UcxOptions options;
  options.transports = ucx_transports;
  const auto open = [&]() -> absl::Status {
    ANNULUS_ASSIGN_OR_RETURN(fabric_, UcxFabric::Create(options));
    fabric_->messenger().SetHandlers({[](PeerId, Message) {}, [](PeerId, absl::Status) {}});
    progress_ = std::make_unique<ProgressThread>(fabric_->messenger());
    return absl::OkStatus();
  };
  ANNULUS_RETURN_IF_ERROR(AllOk(open()));
  ANNULUS_ASSIGN_OR_RETURN(addresses_, Gather(fabric_->messenger().address()));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Exchange>> Ranks::OpenExchange() {
  const uint64_t channel = kControlChannel + ++channels_;
  if (nccl_) return OpenNccl(*session_, channel);
  if (fabric_ == nullptr) return session_->OpenExchange(channel, world());
  return fabric_->OpenExchange(channel, rank(), addresses_);
}

}  // namespace annulus
