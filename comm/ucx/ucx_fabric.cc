#include "comm/ucx/ucx_fabric.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/exchange_checks.h"
#include "comm/ucx/ucx_exchange.h"
#include "comm/ucx/ucx_messenger.h"
#include "comm/ucx/ucx_transport.h"

namespace annulus {
namespace {

// Announcements kept for exchanges that are not open yet; beyond it the oldest are forgotten, and
// who waits for them ends at its deadline.
constexpr size_t kEarlyMax = 65536;

}  // namespace

UcxExchangeHub::UcxExchangeHub(UcxTransport& transport) : transport_(transport) {
  const auto lock = transport_.Lock();
  transport_.SetReceiver(UcxAm::kExchange,
                         [this](absl::Span<const std::byte> header,
                                absl::Span<const std::byte> data) { OnMessage(header, data); });
}

absl::StatusOr<std::unique_ptr<Exchange>> UcxExchangeHub::Open(
    uint64_t channel, int rank, absl::Span<const std::string> addresses) {
  ANNULUS_RETURN_IF_ERROR(CheckMembers(rank, addresses, transport_.address().ToString()));
  std::vector<UcxAddress> remotes;
  for (const std::string& address : addresses) {
    ANNULUS_ASSIGN_OR_RETURN(UcxAddress remote, UcxAddress::Parse(address));
    remotes.push_back(std::move(remote));
  }
  const auto lock = transport_.Lock();
  if (exchanges_.count(channel) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("channel is ", channel, ", expected one that is not in use"));
  }
  std::vector<std::shared_ptr<UcxLink>> links(remotes.size());
  for (size_t peer = 0; peer < remotes.size(); ++peer) {
    if (static_cast<int>(peer) == rank) continue;
    std::shared_ptr<UcxLink>& link = links_[remotes[peer].fabric];
    if (link == nullptr) {
      link = transport_.Connect(remotes[peer]);
      link->on_down = [this, raw = link.get()](const absl::Status& why) { OnLinkDown(*raw, why); };
    }
    links[peer] = link;
  }
  auto exchange = std::make_unique<UcxExchange>(*this, channel, rank, std::move(links));
  exchanges_.emplace(channel, exchange.get());
  if (auto early = early_.extract(channel); !early.empty()) {
    std::erase(early_order_, channel);
    early_count_ -= early.mapped().size();
    for (const Early& mail : early.mapped()) exchange->OnMessage(mail.header, mail.text, {});
  }
  transport_.WakeIfAsleep();
  return exchange;
}

void UcxExchangeHub::OnMessage(absl::Span<const std::byte> header,
                               absl::Span<const std::byte> data) {
  UcxExchangeHeader fields;
  if (header.size() < sizeof fields) return;
  std::memcpy(&fields, header.data(), sizeof fields);
  const auto rest = header.subspan(sizeof fields);
  const absl::string_view text(reinterpret_cast<const char*>(rest.data()), rest.size());
  if (const auto it = exchanges_.find(fields.channel); it != exchanges_.end()) {
    it->second->OnMessage(fields, text, data);
  } else if (fields.kind == UcxExchangeHeader::kReady || fields.kind == UcxExchangeHeader::kAbort) {
    KeepEarly(fields, text);
  }
}

void UcxExchangeHub::KeepEarly(const UcxExchangeHeader& header, absl::string_view text) {
  std::vector<Early>& mail = early_[header.channel];
  if (mail.empty()) early_order_.push_back(header.channel);
  mail.push_back({header, std::string(text)});
  ++early_count_;
  while (early_count_ > kEarlyMax) {
    early_count_ -= early_.extract(early_order_.front()).mapped().size();
    early_order_.pop_front();
  }
}

void UcxExchangeHub::OnLinkDown(const UcxLink& link, const absl::Status& why) {
  for (const auto& [channel, exchange] : exchanges_) exchange->OnLinkDown(link, why);
  links_.erase(link.remote().fabric);
}

class UcxFabric::Parts {
 public:
  explicit Parts(std::unique_ptr<UcxTransport> transport)
      : transport_(std::move(transport)), messenger(*transport_), hub(*transport_) {}

 private:
  const std::unique_ptr<UcxTransport> transport_;

 public:
  UcxMessenger messenger;
  UcxExchangeHub hub;
};

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
  return parts_->hub.Open(channel, rank, addresses);
}

}  // namespace annulus
