#include "base/cores_taken.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace annulus {

CoresTaken::CoresTaken() : begin_(Now()) {}

std::optional<CoresTaken::Times> CoresTaken::Now() {
  // Of all cores, in ticks: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
  std::ifstream file("/proc/stat");
  std::string name;
  double ticks[8] = {};
  file >> name;
  for (double& count : ticks) file >> count;
  rusage usage;
  if (!file || name != "cpu" || getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  const double per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  Times times;
  for (const double count : ticks) times.all += count / per_second;
  times.used = times.all - (ticks[3] + ticks[4]) / per_second;
  for (const timeval& part : {usage.ru_utime, usage.ru_stime}) {
    times.own += static_cast<double>(part.tv_sec) + 1e-6 * static_cast<double>(part.tv_usec);
  }
  return times;
}

double CoresTaken::Share() const {
  const std::optional<Times> now = Now();
  if (!begin_.has_value() || !now.has_value() || now->all <= begin_->all) return 0;
  const double others = (now->used - begin_->used) - (now->own - begin_->own);
  return std::clamp(others / (now->all - begin_->all), 0.0, 1.0);
}

}  // namespace annulus
