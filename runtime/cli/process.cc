#include "runtime/cli/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"

namespace annulus {
namespace {

constexpr size_t kLineBytesMax = 4096;

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", strerror(errno)));
}

bool IsIgnored(int signal) {
  struct sigaction action = {};
  return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// The child between fork and exec: only what is safe in a process with other threads.
[[noreturn]] void BecomeChild(pid_t parent, int stdout_fd, char* const* argv, char* const* envp) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);  // it ended before prctl
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null_fd = open("/dev/null", O_RDONLY);
  if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
  dup2(stdout_fd, STDOUT_FILENO);
  execve("/proc/self/exe", argv, envp);
  _exit(127);
}

}  // namespace

Signals::Signals() {
  // A shell starts background jobs with SIGINT ignored; ignored signals could not be waited for.
  sigemptyset(&signals_);
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGCHLD}) {
    ::signal(signal, SIG_DFL);
    sigaddset(&signals_, signal);
  }
  if (!IsIgnored(SIGHUP)) sigaddset(&signals_, SIGHUP);
  ANNULUS_CHECK(pthread_sigmask(SIG_BLOCK, &signals_, nullptr) == 0);
}

int Signals::Wait(absl::Duration wait) {
  const timespec left = absl::ToTimespec(wait);
  while (true) {
    const int got = sigtimedwait(&signals_, nullptr, &left);
    if (got > 0) return got;
    if (errno != EINTR) return 0;
  }
}

bool Signals::WaitForStop(absl::Duration wait) {
  const int signal = Wait(wait);
  return signal != 0 && signal != SIGCHLD;
}

absl::StatusOr<std::unique_ptr<Child>> Child::Start(const std::vector<std::string>& args) {
  std::vector<std::string> command = {"annulus"};
  command.insert(command.end(), args.begin(), args.end());
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "ANNULUS_")) variables.push_back(*variable);
  }
  const std::vector<char*> argv = Pointers(command);
  const std::vector<char*> envp = Pointers(variables);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return SystemError("pipe");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) BecomeChild(parent, ends[1], argv.data(), envp.data());
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return SystemError("fork");
  }
  return std::unique_ptr<Child>(new Child(pid, ends[0]));
}

Child::~Child() {
  close(stdout_fd_);
  if (!running_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

absl::StatusOr<std::string> Child::ReadLine(absl::Time deadline) {
  std::string line;
  while (line.size() < kLineBytesMax) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd readable{stdout_fd_, POLLIN, 0};
    const int ready = poll(&readable, 1, static_cast<int>(absl::ToInt64Milliseconds(left)));
    if (ready < 0 && errno != EINTR) return SystemError("poll");
    if (ready == 0) return absl::DeadlineExceededError("the process said nothing in time");
    char c = 0;
    const ssize_t got = ready < 0 ? -1 : read(stdout_fd_, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return absl::UnavailableError("the process ended before it was ready");
    if (c == '\n') return line;
    line.push_back(c);
  }
  return absl::InternalError("the process prints a line without end");
}

void Child::Terminate() {
  if (running_) kill(pid_, SIGTERM);
}

std::string Child::Reap() {
  int status = 0;
  if (!running_ || waitpid(pid_, &status, WNOHANG) != pid_) return "";
  running_ = false;
  return WIFSIGNALED(status) ? absl::StrCat("signal ", WTERMSIG(status))
                             : absl::StrCat("exit status ", WEXITSTATUS(status));
}

}  // namespace annulus
