#include "runtime/cli/demo_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr absl::Duration kStartTimeout = absl::Minutes(1);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// Runs this program with `args` and its stdout in the returned pipe.
absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& args, int* stdout_fd) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return SystemError("pipe");
  std::vector<char*> argv;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);  // it died before prctl
    dup2(ends[1], STDOUT_FILENO);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return SystemError("fork");
  }
  *stdout_fd = ends[0];
  return pid;
}

// The first line that comes through `fd`, without its end.
absl::StatusOr<std::string> ReadLine(int fd, absl::Time deadline) {
  std::string line;
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd wait{fd, POLLIN, 0};
    const int ready = poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(left)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return SystemError("poll");
    if (ready == 0) return absl::UnavailableError("the cluster was not ready in time");
    char c;
    const ssize_t got = read(fd, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return absl::UnavailableError("the cluster ended before it was ready");
    if (c == '\n') return line;
    line.push_back(c);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<DemoCluster>> DemoCluster::Start(int workers,
                                                                const std::string& backend,
                                                                int64_t kv_bytes_per_worker) {
  int stdout_fd = -1;
  ANNULUS_ASSIGN_OR_RETURN(
      const pid_t pid,
      Spawn({"annulus", "up", "--json", "--workers", absl::StrCat(workers), "--backend", backend,
             "--kv-bytes-limit", absl::StrCat(kv_bytes_per_worker)},
            &stdout_fd));
  std::unique_ptr<DemoCluster> cluster(new DemoCluster(pid));
  const absl::StatusOr<std::string> line = ReadLine(stdout_fd, absl::Now() + kStartTimeout);
  close(stdout_fd);
  ANNULUS_RETURN_IF_ERROR(line.status());
  const auto json = nlohmann::json::parse(*line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("endpoint") || !json["endpoint"].is_string()) {
    return absl::InternalError("the cluster's ready line has no endpoint");
  }
  cluster->endpoint_ = json["endpoint"].get<std::string>();
  return cluster;
}

DemoCluster::~DemoCluster() {
  kill(pid_, SIGTERM);
  const absl::Time deadline = absl::Now() + kStopTimeout;
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (absl::Now() >= deadline) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      return;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
}

}  // namespace annulus
