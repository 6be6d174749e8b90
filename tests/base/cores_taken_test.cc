#include "base/cores_taken.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "absl/time/clock.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("cores taken: what others run counts") {
  const pid_t other = fork();
  REQUIRE(other >= 0);
  if (other == 0) {
    for (;;) {
    }
  }
  const CoresTaken others;
  absl::SleepFor(absl::Seconds(1));
  const double share = others.Share();
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
  CHECK(share > 0.5 / static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN)));
  CHECK(share <= 1);
}

}  // namespace
}  // namespace annulus
