#include "runtime/telemetry/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/free_by.h"

namespace annulus {
namespace {

// Fields of /proc/self/stat (proc(5)), counted from the first one after the name in parentheses,
// which is field 3 there: a name may hold blanks.
enum StatField : size_t {
  kUserTicks = 11,
  kSystemTicks = 12,
  kThreads = 17,
  kStartTicks = 19,
  kVirtualBytes = 20,
  kResidentPages = 21
};

class Stat {
 public:
  Stat() {
    std::string text;
    std::ifstream file("/proc/self/stat");
    std::getline(file, text);
    const size_t name_end = text.rfind(") ");
    if (name_end == std::string::npos) return;
    fields_ = absl::StrSplit(text.substr(name_end + 2), ' ');
  }

  std::optional<double> operator[](StatField field) const {
    double value = 0;
    if (field >= fields_.size() || !absl::SimpleAtod(fields_[field], &value)) return std::nullopt;
    return value;
  }

 private:
  std::vector<std::string> fields_;
};

// When the machine started, in seconds since the Unix epoch.
std::optional<double> BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    absl::string_view text = line;
    double seconds = 0;
    if (absl::ConsumePrefix(&text, "btime ") && absl::SimpleAtod(text, &seconds)) return seconds;
  }
  return std::nullopt;
}

std::optional<double> OpenDescriptors() {
  const std::unique_ptr<DIR, FreeBy<&closedir>> folder(opendir("/proc/self/fd"));
  if (folder == nullptr) return std::nullopt;
  double entries = 0;
  while (readdir(folder.get()) != nullptr) ++entries;
  return entries - 3;  // ".", ".." and the folder itself
}

std::optional<double> DescriptorsMax() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return std::nullopt;
  if (limit.rlim_cur == RLIM_INFINITY) return std::numeric_limits<double>::infinity();
  return static_cast<double>(limit.rlim_cur);
}

}  // namespace

std::vector<Metric> ProcessMetrics() {
  const Stat stat;
  const auto ticks_per_s = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  std::vector<Metric> metrics;
  const auto add = [&](const char* name, const char* help, std::optional<double> value,
                       Metric::Kind kind = Metric::Kind::kGauge) {
    if (value.has_value()) metrics.push_back({name, help, kind, *value, {}});
  };
  const auto times = [](std::optional<double> value, double factor) {
    if (value.has_value()) *value *= factor;
    return value;
  };
  std::optional<double> cpu_s = times(stat[kUserTicks], 1 / ticks_per_s);
  if (cpu_s.has_value()) *cpu_s += stat[kSystemTicks].value_or(0) / ticks_per_s;
  std::optional<double> start_s = times(stat[kStartTicks], 1 / ticks_per_s);
  const std::optional<double> boot_s = BootTime();
  if (start_s.has_value()) start_s = boot_s.has_value() ? *start_s + *boot_s : boot_s;
  add("process_cpu_seconds_total", "CPU time of the process, user and system.", cpu_s,
      Metric::Kind::kCounter);
  add("process_start_time_seconds", "When the process started, since the Unix epoch.", start_s);
  add("process_resident_memory_bytes", "Memory of the process that is resident.",
      times(stat[kResidentPages], page_bytes));
  add("process_virtual_memory_bytes", "Address space of the process.", stat[kVirtualBytes]);
  add("process_threads", "Threads of the process.", stat[kThreads]);
  add("process_open_fds", "Descriptors that are open.", OpenDescriptors());
  add("process_max_fds", "Descriptors that may be open.", DescriptorsMax());
  return metrics;
}

}  // namespace annulus
