// A child process of a test: a hidden case of the same program, whose stdin and stdout are pipes of
// ours. One thread.
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>

#include "tests/catch.h"

namespace annulus {

class Child {
 public:
  explicit Child(const char* test_case) {
    int to_child[2];
    int from_child[2];
    REQUIRE(pipe2(to_child, O_CLOEXEC) == 0);
    REQUIRE(pipe2(from_child, O_CLOEXEC) == 0);
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(to_child[0], 0);
      dup2(from_child[1], 1);
      execl("/proc/self/exe", "child", test_case, nullptr);
      _exit(127);
    }
    close(to_child[0]);
    close(from_child[1]);
    in_ = to_child[1];
    out_ = from_child[0];
  }
  ~Child() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Join();
    }
    close(in_);
    close(out_);
  }

  pid_t pid() const { return pid_; }
  // Returns when it has stopped, a while after it was told to.
  void Pause() {
    REQUIRE(kill(pid_, SIGSTOP) == 0);
    siginfo_t stopped;
    REQUIRE(waitid(P_PID, pid_, &stopped, WSTOPPED) == 0);
  }
  void Resume() { REQUIRE(kill(pid_, SIGCONT) == 0); }
  void Kill() {
    kill(pid_, SIGKILL);
    Join();
  }
  int Join() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }
  void WriteLine(const std::string& line) {
    const std::string text = line + "\n";
    REQUIRE(write(in_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  // The next line that begins with `prefix`, without it.
  std::string ReadLine(const std::string& prefix) {
    std::string line;
    char c;
    while (read(out_, &c, 1) == 1) {
      if (c != '\n') {
        line += c;
        continue;
      }
      if (line.rfind(prefix, 0) == 0) return line.substr(prefix.size());
      line.clear();
    }
    FAIL("the child ended without saying " << prefix);
    return "";
  }

 private:
  pid_t pid_ = -1;
  int in_ = -1;
  int out_ = -1;
};

}  // namespace annulus
