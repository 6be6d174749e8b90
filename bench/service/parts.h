// The bare parts that a call of the service is made of, each without a line of the service: gRPC
// carrying as many bytes, UCX carrying as many bytes. An echo may have something else done before
// it answers, so that parts wait for one another as those of a call do. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus {

// Times of one thing done many times.
class Samples {
 public:
  static constexpr int kWarmUps = 50;  // rounds

  explicit Samples(std::vector<double> seconds);
  // After `warm_ups` rounds that do not count, `rounds` that do.
  static Samples Of(int rounds, const std::function<void()>& action, int warm_ups = kWarmUps);
  // The same of several things done in turn, so that each finds caches and sleeping cores as it
  // does where the others come before and after it.
  static std::vector<Samples> InTurn(int rounds, const std::vector<std::function<void()>>& actions,
                                     int warm_ups = kWarmUps);

  // The median of what one round took beside the same round of another: of two that are done in
  // turn, where the machine's speed changes from second to second.
  double MedianBeside(const Samples& other) const;

  double Quantile(double q) const;  // seconds; q from 0 to 1
  double p50() const { return Quantile(0.5); }
  double p99() const { return Quantile(0.99); }

 private:
  std::vector<double> seconds_;  // by round
  std::vector<double> sorted_s_;
};

// Payload of one call in each direction.
struct CallBytes {
  int64_t request = 0;
  int64_t reply = 0;
};

// A gRPC server over loopback that answers at once, or after `work`: the protocol's own methods
// with nothing behind them. `stream`: on one open stream (Steps), else a call each (Attend).
class GrpcEcho {
 public:
  static absl::StatusOr<std::unique_ptr<GrpcEcho>> Start(const CallBytes& bytes, bool stream,
                                                         std::function<void()> work = {});
  virtual ~GrpcEcho() = default;
  virtual bool Call() = 0;  // whether it went well
};

// Two fabrics as the service has them, a thread each: a message there and, after `work`, one back.
class UcxEcho {
 public:
  static absl::StatusOr<std::unique_ptr<UcxEcho>> Start(const CallBytes& bytes,
                                                        std::function<void()> work = {});
  virtual ~UcxEcho() = default;
  virtual bool Call() = 0;  // whether it went well
};

}  // namespace annulus
