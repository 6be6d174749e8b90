#include "bench/kernels/peer.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {

absl::StatusOr<std::unique_ptr<Peer>> Peer::Start(const std::string& command) {
  int to_child[2];
  int from_child[2];
  if (pipe(to_child) != 0 || pipe(from_child) != 0) {
    return absl::UnavailableError(absl::StrCat("pipe: ", strerror(errno)));
  }
  signal(SIGPIPE, SIG_IGN);  // a peer that ended shows when it is read from
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    for (const int fd : {to_child[0], to_child[1], from_child[0], from_child[1]}) close(fd);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  if (pid < 0) return absl::UnavailableError(absl::StrCat("fork: ", strerror(errno)));
  std::unique_ptr<Peer> peer(new Peer(pid, fdopen(to_child[1], "w"), fdopen(from_child[0], "r")));
  ANNULUS_ASSIGN_OR_RETURN(peer->name_, peer->ReadLine());
  return peer;
}

Peer::~Peer() {
  std::fclose(to_);
  std::fclose(from_);
  waitpid(pid_, nullptr, 0);
}

absl::StatusOr<std::string> Peer::ReadLine() {
  std::string line;
  for (int c = std::fgetc(from_); c != '\n'; c = std::fgetc(from_)) {
    if (c == EOF) return absl::UnavailableError("the peer ended");
    line.push_back(static_cast<char>(c));
  }
  return line;
}

absl::StatusOr<std::string> Peer::Ask(absl::string_view line) {
  const std::string text = absl::StrCat(line, "\n");
  if (std::fputs(text.c_str(), to_) < 0 || std::fflush(to_) != 0) {
    return absl::UnavailableError("the peer ended");
  }
  return ReadLine();
}

absl::Status Peer::SetUp(absl::string_view workload) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string answer, Ask(absl::StrCat("setup ", workload)));
  return answer == "ok" ? absl::OkStatus() : absl::FailedPreconditionError(answer);
}

absl::StatusOr<double> Peer::Run() {
  ANNULUS_ASSIGN_OR_RETURN(const std::string answer, Ask("run"));
  double seconds = 0;
  if (!absl::SimpleAtod(answer, &seconds) || seconds <= 0) {
    return absl::InternalError(absl::StrCat("the peer answered '", answer, "', not seconds"));
  }
  return seconds;
}

}  // namespace annulus
