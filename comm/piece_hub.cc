#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/piece_exchange.h"

namespace annulus {
namespace {

// Announcements kept for exchanges that are not open yet; beyond it the oldest are forgotten, and
// who waits for them ends at its deadline.
constexpr size_t kEarlyMax = 65536;

}  // namespace

absl::StatusOr<std::unique_ptr<Exchange>> PieceHub::Open(
    std::string name, uint64_t channel, int rank, std::vector<std::shared_ptr<PieceLink>> links) {
  if (exchanges_.count(channel) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("channel is ", channel, ", expected one that is not in use"));
  }
  auto exchange =
      std::make_unique<PieceExchange>(*this, std::move(name), channel, rank, std::move(links));
  exchanges_.emplace(channel, exchange.get());
  if (auto early = early_.extract(channel); !early.empty()) {
    std::erase(early_order_, channel);
    early_count_ -= early.mapped().size();
    for (const Early& mail : early.mapped()) exchange->OnMessage(mail.header, mail.text);
  }
  transport_.WakeIfAsleep();
  return exchange;
}

PieceExchange* PieceHub::Find(const PieceHeader& header) const {
  const auto it = exchanges_.find(header.channel);
  return it == exchanges_.end() ? nullptr : it->second;
}

void PieceHub::OnMessage(const PieceHeader& header, absl::string_view text) {
  if (PieceExchange* const exchange = Find(header); exchange != nullptr) {
    exchange->OnMessage(header, text);
  } else if (header.kind == PieceHeader::kReady || header.kind == PieceHeader::kAbort) {
    KeepEarly(header, text);
  }
}

std::optional<std::byte*> PieceHub::Place(const PieceHeader& header, size_t size_bytes) {
  PieceExchange* const exchange = Find(header);
  return exchange == nullptr ? std::nullopt : exchange->Place(header, size_bytes);
}

void PieceHub::OnArrived(const PieceHeader& header, size_t size_bytes) {
  Find(header)->OnArrived(header, size_bytes);
}

void PieceHub::KeepEarly(const PieceHeader& header, absl::string_view text) {
  std::vector<Early>& mail = early_[header.channel];
  if (mail.empty()) early_order_.push_back(header.channel);
  mail.push_back({header, std::string(text)});
  ++early_count_;
  while (early_count_ > kEarlyMax) {
    early_count_ -= early_.extract(early_order_.front()).mapped().size();
    early_order_.pop_front();
  }
}

void PieceHub::OnLinkDown(const PieceLink& link, const absl::Status& why) {
  for (const auto& [channel, exchange] : exchanges_) exchange->OnLinkDown(link, why);
}

void PieceHub::FailAll(const absl::Status& why) {
  for (const auto& [channel, exchange] : exchanges_) exchange->FailAll(why);
}

}  // namespace annulus
