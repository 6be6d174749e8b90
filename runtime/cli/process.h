// Child processes that run this same program, and the signals that end one. Not thread-safe: one
// thread starts, watches and ends them.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace annulus {

// While it lives SIGINT, SIGTERM, SIGQUIT, SIGHUP and SIGCHLD interrupt nothing and wait to be
// asked for. To be made before the process has other threads: they inherit that. A SIGHUP that is
// ignored (nohup) stays so.
class Signals {
 public:
  Signals();

  // The next signal, or 0 after `wait`.
  int Wait(absl::Duration wait);
  // Whether one that ends the process came, waiting for a signal up to `wait`.
  bool WaitForStop(absl::Duration wait);

 private:
  sigset_t signals_;
};

class Child {
 public:
  // Runs this program with `args` (the command first) and without ANNULUS_* variables, so that the
  // arguments say everything. Its stderr is ours, its stdin empty. It gets SIGTERM when the thread
  // that started it ends.
  static absl::StatusOr<std::unique_ptr<Child>> Start(const std::vector<std::string>& args);

  // Kills a child that still runs, and waits for it.
  ~Child();

  pid_t pid() const { return pid_; }
  bool running() const { return running_; }

  // What it prints on stdout up to a newline. UNAVAILABLE if it ends before; DEADLINE_EXCEEDED.
  absl::StatusOr<std::string> ReadLine(absl::Time deadline);

  void Terminate();  // SIGTERM, if it runs

  // What Reap says of one that ended in good order.
  static constexpr char kEndedWell[] = "exit status 0";

  // Looks whether it ended meanwhile; "exit status 1", "signal 9" once it did, else empty.
  std::string Reap();

 private:
  Child(pid_t pid, int stdout_fd) : pid_(pid), stdout_fd_(stdout_fd) {}

  const pid_t pid_;
  const int stdout_fd_;
  bool running_ = true;
};

}  // namespace annulus
