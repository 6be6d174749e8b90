#include "tests/mpi/mpi_group.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace annulus {
namespace {

MpiSession* the_session = nullptr;

absl::Time Soon() {
  return absl::Now() + absl::Seconds(60);
}

// Keys of one group, in the job's rendezvous.
class PrefixedRendezvous final : public Rendezvous {
 public:
  explicit PrefixedRendezvous(std::string prefix) : prefix_(std::move(prefix)) {}

  absl::Status Put(absl::string_view key, absl::string_view value) override {
    return the_session->rendezvous().Put(absl::StrCat(prefix_, key), value);
  }
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Time deadline) override {
    return the_session->rendezvous().Get(absl::StrCat(prefix_, key), deadline);
  }

 private:
  const std::string prefix_;
};

class Processes final : public ExchangeGroup {
 public:
  // All ranks make their groups in the same order: `number` is the same everywhere.
  Processes(int number, int world)
      : number_(number), world_(world), rendezvous_(absl::StrCat("group ", number, " body ")) {
    if (the_session->rank() >= world) return;
    auto opened = the_session->OpenExchange(Channel(0), world);
    INFO(opened.status());
    REQUIRE(opened.ok());
    exchange_ = *std::move(opened);
  }

  void Run(const std::function<absl::Status(Exchange&)>& body) override {
    const int rank = the_session->rank();
    const std::string run = absl::StrCat("group ", number_, " run ", ++runs_, " rank ");
    if (exchange_ != nullptr) {
      const absl::Status status = body(*exchange_);
      // Where a rank fails, those who wait for it at a barrier must not.
      for (int i = 0; !status.ok() && i < kBarriersMax; ++i) Arrive(barriers_ + 1 + i);
      (void)the_session->rendezvous().Put(absl::StrCat(run, rank), status.ToString());
    }
    for (int other = 0; other < world_; ++other) {
      const auto said = the_session->rendezvous().Get(absl::StrCat(run, other), Soon());
      INFO("rank " << other << ": " << (said.ok() ? *said : said.status().ToString()));
      CHECK((said.ok() && *said == "OK"));
    }
  }

  void Barrier() override {
    const std::string barrier = Arrive(++barriers_);
    for (int other = 0; other < world_; ++other) {
      (void)the_session->rendezvous().Get(absl::StrCat(barrier, other), Soon());
    }
  }

  absl::StatusOr<std::unique_ptr<Exchange>> Open(int, uint64_t channel) override {
    return the_session->OpenExchange(Channel(channel), world_);
  }

  Rendezvous& rendezvous() override { return rendezvous_; }

 private:
  static constexpr int kBarriersMax = 4;  // of one body

  uint64_t Channel(uint64_t channel) const {
    return static_cast<uint64_t>(number_) * 1'000'000 + channel;
  }
  std::string Arrive(int barrier) {
    std::string key = absl::StrCat("group ", number_, " barrier ", barrier, " rank ");
    (void)the_session->rendezvous().Put(absl::StrCat(key, the_session->rank()), "here");
    return key;
  }

  const int number_;
  const int world_;
  PrefixedRendezvous rendezvous_;
  std::unique_ptr<Exchange> exchange_;  // null: this process is not a member
  int runs_ = 0;
  int barriers_ = 0;
};

}  // namespace

void SetMpiSession(MpiSession* session) {
  the_session = session;
}

MpiSession& TheMpiSession() {
  return *the_session;
}

std::vector<std::string> ExchangeKinds(bool) {
  return {"mpi"};
}

std::unique_ptr<ExchangeGroup> MakeExchangeGroup(const std::string&, int world) {
  static int groups = 0;
  if (world <= the_session->world()) return std::make_unique<Processes>(++groups, world);
  WARN("skipped: " << world << " ranks, the job has " << the_session->world());
  return nullptr;
}

}  // namespace annulus
