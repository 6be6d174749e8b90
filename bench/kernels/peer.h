// A peer: another program that computes the same workloads in turn with us, so that both see the
// same machine. It reads commands on stdin and answers each with one line on stdout:
//   setup causal|last DTYPE TOKENS HEADS KV_HEADS DIM   → "ok", or why it cannot
//   run                                                 → seconds of one call
// and first of all prints its name. See bench/peers/torch_sdpa.py. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

class Peer {
 public:
  // Runs `command` in a shell. UNAVAILABLE if it ends before it says its name.
  static absl::StatusOr<std::unique_ptr<Peer>> Start(const std::string& command);
  ~Peer();  // closes its stdin, and waits for it to end

  const std::string& name() const { return name_; }

  // Prepares a workload; the reason if it cannot.
  absl::Status SetUp(absl::string_view workload);
  // Seconds of one call.
  absl::StatusOr<double> Run();

 private:
  Peer(pid_t pid, FILE* to, FILE* from) : pid_(pid), to_(to), from_(from) {}
  absl::StatusOr<std::string> Ask(absl::string_view line);
  absl::StatusOr<std::string> ReadLine();

  const pid_t pid_;
  FILE* const to_;
  FILE* const from_;
  std::string name_;
};

}  // namespace annulus
