#include "comm/ucx/ucx_fabric.h"

#include <cstring>
#include <map>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/exchange_checks.h"
#include "comm/piece_exchange.h"
#include "comm/ucx/ucx_messenger.h"
#include "comm/ucx/ucx_transport.h"

namespace annulus {

class UcxFabric::Parts {
 public:
  explicit Parts(std::unique_ptr<UcxTransport> transport);

  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(uint64_t channel, int rank,
                                                         absl::Span<const std::string> addresses);

 private:
  void OnExchangeMessage(absl::Span<const std::byte> header, absl::Span<const std::byte> data);
  void OnPiece(const PieceHeader& fields, absl::Span<const std::byte> rest,
               absl::Span<const std::byte> data);
  std::shared_ptr<PieceLink> LinkTo(const UcxAddress& remote);

  const std::unique_ptr<UcxTransport> transport_;
  PieceHub hub_;
  std::map<uint64_t, std::shared_ptr<UcxLink>> links_;  // of exchanges, by the remote's identity

 public:
  UcxMessenger messenger;
};

UcxFabric::Parts::Parts(std::unique_ptr<UcxTransport> transport)
    : transport_(std::move(transport)), hub_(*transport_), messenger(*transport_) {
  const auto lock = transport_->Lock();
  transport_->SetReceiver(UcxAm::kExchange, [this](absl::Span<const std::byte> header,
                                                   absl::Span<const std::byte> data) {
    OnExchangeMessage(header, data);
  });
}

absl::StatusOr<std::unique_ptr<Exchange>> UcxFabric::Parts::OpenExchange(
    uint64_t channel, int rank, absl::Span<const std::string> addresses) {
  ANNULUS_RETURN_IF_ERROR(CheckMembers(rank, addresses, transport_->address().ToString()));
  std::vector<UcxAddress> remotes;
  for (const std::string& address : addresses) {
    ANNULUS_ASSIGN_OR_RETURN(UcxAddress remote, UcxAddress::Parse(address));
    remotes.push_back(std::move(remote));
  }
  const auto lock = transport_->Lock();
  std::vector<std::shared_ptr<PieceLink>> links(remotes.size());
  for (size_t peer = 0; peer < remotes.size(); ++peer) {
    if (static_cast<int>(peer) != rank) links[peer] = LinkTo(remotes[peer]);
  }
  return hub_.Open("ucx", channel, rank, std::move(links));
}

std::shared_ptr<PieceLink> UcxFabric::Parts::LinkTo(const UcxAddress& remote) {
  std::shared_ptr<UcxLink>& link = links_[remote.fabric];
  if (link == nullptr) {
    link = transport_->Connect(remote);
    link->on_down = [this, raw = link.get()](const absl::Status& why) {
      hub_.OnLinkDown(*raw, why);
      links_.erase(raw->remote().fabric);
    };
  }
  return link;
}

void UcxFabric::Parts::OnExchangeMessage(absl::Span<const std::byte> header,
                                         absl::Span<const std::byte> data) {
  PieceHeader fields;
  if (header.size() < sizeof fields) return;
  std::memcpy(&fields, header.data(), sizeof fields);
  try {
    OnPiece(fields, header.subspan(sizeof fields), data);
  } catch (const std::bad_alloc&) {
    hub_.Fail(fields.channel, absl::ResourceExhaustedError("no memory for what a rank sent"));
  }
}

void UcxFabric::Parts::OnPiece(const PieceHeader& fields, absl::Span<const std::byte> rest,
                               absl::Span<const std::byte> data) {
  if (fields.kind != PieceHeader::kData) {
    hub_.OnMessage(fields, {reinterpret_cast<const char*>(rest.data()), rest.size()});
    return;
  }
  const std::optional<std::byte*> place = hub_.Place(fields, data.size());
  if (!place.has_value()) return;
  if (!data.empty()) std::memcpy(*place, data.data(), data.size());
  hub_.OnArrived(fields, data.size());
}

UcxFabric::UcxFabric(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
UcxFabric::~UcxFabric() = default;

absl::StatusOr<std::unique_ptr<UcxFabric>> UcxFabric::Create(const UcxOptions& options) {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<UcxTransport> transport, UcxTransport::Create(options));
  return std::unique_ptr<UcxFabric>(new UcxFabric(std::make_unique<Parts>(std::move(transport))));
}

Messenger& UcxFabric::messenger() {
  return parts_->messenger;
}

absl::StatusOr<std::unique_ptr<Exchange>> UcxFabric::OpenExchange(
    uint64_t channel, int rank, absl::Span<const std::string> addresses) {
  return parts_->OpenExchange(channel, rank, addresses);
}

}  // namespace annulus
