#include "comm/mpi/mpi_session.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/local/local_rendezvous.h"
#include "comm/mpi/mpi_transport.h"

namespace annulus {
namespace {

// How often a wait for rank 0's word looks whether MPI is still there.
constexpr absl::Duration kBrokenPeriod = absl::Seconds(1);

// Rank 0 has the first word on every key and tells all; each rank has a copy.
class MpiRendezvous final : public Rendezvous {
 public:
  explicit MpiRendezvous(MpiTransport& transport) : transport_(transport) {}

  absl::Status Put(absl::string_view key, absl::string_view value) override {
    {
      const auto lock = transport_.Lock();
      const std::string text = absl::StrCat(key.size(), ":", key, value);
      if (transport_.rank() == 0) {
        OnText(text);
      } else {
        transport_.SendText(0, text);
      }
    }
    transport_.WakeIfAsleep();
    absl::StatusOr<std::string> first;
    do {
      first = Get(key, absl::Now() + kBrokenPeriod);
      const auto lock = transport_.Lock();
      ANNULUS_RETURN_IF_ERROR(transport_.status());
    } while (!first.ok());
    if (*first == value) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("key ", key, " has another value"));
  }

  absl::StatusOr<std::string> Get(absl::string_view key, absl::Time deadline) override {
    return values_.Get(key, deadline);
  }

  // With the lock. At rank 0: somebody's value; elsewhere: the value.
  void OnText(absl::string_view text) {
    const size_t colon = text.find(':');
    size_t key_bytes = 0;
    if (!absl::SimpleAtoi(text.substr(0, colon), &key_bytes)) return;
    const absl::string_view key = text.substr(colon + 1, key_bytes);
    const absl::string_view value = text.substr(colon + 1 + key_bytes);
    if (!values_.Put(key, value).ok() || transport_.rank() != 0) return;
    for (int peer = 1; peer < transport_.world(); ++peer) transport_.SendText(peer, text);
  }

 private:
  MpiTransport& transport_;
  LocalRendezvous values_;
};

}  // namespace

class MpiSession::Parts {
 public:
  explicit Parts(std::unique_ptr<MpiTransport> started)
      : rendezvous(*started), transport(std::move(started)) {
    transport->StartThread([this](absl::string_view text) { rendezvous.OnText(text); });
  }

  MpiRendezvous rendezvous;  // goes last: until all ranks are done rank 0 answers them
  const std::unique_ptr<MpiTransport> transport;
};

MpiSession::MpiSession(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
MpiSession::~MpiSession() = default;

absl::StatusOr<std::unique_ptr<MpiSession>> MpiSession::Start(const MpiOptions& options) {
  if (options.piece_bytes < 1 || options.piece_bytes > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("piece_bytes: ", options.piece_bytes, "; expected 1 to ", INT32_MAX));
  }
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<MpiTransport> transport, MpiTransport::Create(options));
  return std::unique_ptr<MpiSession>(new MpiSession(std::make_unique<Parts>(std::move(transport))));
}

int MpiSession::rank() const {
  return parts_->transport->rank();
}

int MpiSession::world() const {
  return parts_->transport->world();
}

Rendezvous& MpiSession::rendezvous() {
  return parts_->rendezvous;
}

absl::StatusOr<std::unique_ptr<Exchange>> MpiSession::OpenExchange(uint64_t channel, int members) {
  MpiTransport& transport = *parts_->transport;
  if (members < 1 || members > transport.world() || transport.rank() >= members) {
    return absl::InvalidArgumentError(absl::StrCat("members: ", members,
                                                   "; expected more than rank ", transport.rank(),
                                                   " and at most ", transport.world()));
  }
  std::vector<std::shared_ptr<PieceLink>> links(static_cast<size_t>(members));
  for (int peer = 0; peer < members; ++peer) {
    if (peer != transport.rank()) links[static_cast<size_t>(peer)] = transport.link(peer);
  }
  const auto lock = transport.Lock();
  ANNULUS_RETURN_IF_ERROR(transport.status());
  return transport.hub().Open("mpi", channel, transport.rank(), std::move(links));
}

}  // namespace annulus
