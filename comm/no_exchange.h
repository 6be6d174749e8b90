// NoExchange: an exchange in which nothing moves, for ranks of a plan that is carried out without
// one: it costs nothing to open and nobody has to make it move. Thread-safe.
#pragma once

#include "comm/exchange.h"

namespace annulus {

class NoExchange final : public Exchange {
 public:
  NoExchange(int rank, int world) : rank_(rank), world_(world) {}

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return rank_; }
  int world() const override { return world_; }

  // INVALID_ARGUMENT for any operation.
  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override {
    if (sends.empty() && receives.empty()) return Ticket{0};
    return absl::InvalidArgumentError("operations: posted; expected none: nothing moves here");
  }
  absl::Status Wait(Ticket, absl::Time) override { return absl::OkStatus(); }
  void Abort(absl::Status) override {}
  Counters counters() const override { return {}; }

 private:
  const Capabilities capabilities_{.name = "none"};
  const int rank_;
  const int world_;
};

}  // namespace annulus
