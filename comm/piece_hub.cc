#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/piece_exchange.h"

namespace annulus {

absl::StatusOr<std::unique_ptr<Exchange>> PieceHub::Open(
    std::string name, uint64_t channel, int rank, std::vector<std::shared_ptr<PieceLink>> links) {
  if (exchanges_.count(channel) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("channel: ", channel, "; expected one that is not in use"));
  }
  auto exchange =
      std::make_unique<PieceExchange>(*this, std::move(name), channel, rank, std::move(links));
  exchanges_.emplace(channel, exchange.get());
  if (auto early = early_.extract(channel); !early.empty()) {
    std::erase(early_order_, channel);
    ForgetEarly(early.mapped());
    for (const Early& mail : early.mapped().messages) exchange->OnMessage(mail.header, mail.text);
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
  if (text.size() > kReasonBytesMax) return;
  const absl::Time now = clock_.Now();
  const auto [it, is_new] = early_.try_emplace(header.channel, Mail{now, {}});
  if (is_new) early_order_.push_back(header.channel);
  const Early& kept = it->second.messages.emplace_back(Early{header, std::string(text)});
  ++early_count_;
  early_bytes_ += kept.bytes();
  while (!early_order_.empty()) {
    const auto oldest = early_.find(early_order_.front());
    const bool over = early_count_ > kEarlyMax || early_bytes_ > kEarlyBytesMax;
    if (!over && now - oldest->second.since < kEarlyTime) return;
    ForgetEarly(oldest->second);
    early_.erase(oldest);
    early_order_.pop_front();
  }
}

void PieceHub::ForgetEarly(const Mail& mail) {
  early_count_ -= mail.messages.size();
  for (const Early& early : mail.messages) early_bytes_ -= early.bytes();
}

void PieceHub::OnLinkDown(const PieceLink& link, const absl::Status& why) {
  for (const auto& [channel, exchange] : exchanges_) exchange->OnLinkDown(link, why);
}

void PieceHub::Fail(uint64_t channel, const absl::Status& why) {
  const auto it = exchanges_.find(channel);
  if (it != exchanges_.end()) it->second->FailAll(why);
}

void PieceHub::FailAll(const absl::Status& why) {
  for (const auto& [channel, exchange] : exchanges_) exchange->FailAll(why);
}

}  // namespace annulus
