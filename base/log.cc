#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"

namespace annulus {
namespace {

constexpr size_t kValueBytesMax = 512;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

// Never destroyed: threads may log while the process exits.
spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* made = new spdlog::logger("annulus", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_formatter(std::make_unique<spdlog::pattern_formatter>(
        "time=%Y-%m-%dT%H:%M:%S.%fZ level=%l %v", spdlog::pattern_time_type::utc));
    made->set_level(spdlog::level::info);
    return made;
  }();
  return *logger;
}

bool IsPlain(absl::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) &&
        absl::string_view("_-+./:,@%").find(c) == absl::string_view::npos) {
      return false;
    }
  }
  return true;
}

void AppendField(absl::string_view key, absl::string_view value, std::string* line) {
  if (!line->empty()) line->push_back(' ');
  const bool cut = value.size() > kValueBytesMax;
  if (cut) value = value.substr(0, kValueBytesMax);
  if (!cut && IsPlain(value)) {
    absl::StrAppend(line, key, "=", value);
  } else {
    absl::StrAppend(line, key, "=\"", absl::CEscape(value), cut ? "…\"" : "\"");
  }
}

}  // namespace

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view text) {
  if (text == "debug") return LogLevel::kDebug;
  if (text == "info") return LogLevel::kInfo;
  if (text == "warning") return LogLevel::kWarning;
  if (text == "error") return LogLevel::kError;
  if (text == "off") return LogLevel::kOff;
  return absl::InvalidArgumentError(
      absl::StrCat("log-level: \"", absl::CEscape(text.substr(0, 64)),
                   "\"; expected debug, info, warning, error or off"));
}

void SetLogLevel(LogLevel level) {
  Logger().set_level(ToSpdlog(level));
}

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum to = ToSpdlog(level);
  if (level == LogLevel::kOff || !Logger().should_log(to)) return;
  const std::string line = LogLine(event, fields);
  Logger().log(to, spdlog::string_view_t(line.data(), line.size()));
}

std::string LogLine(absl::string_view event, std::initializer_list<LogField> fields) {
  std::string line;
  AppendField("event", event, &line);
  for (const LogField& field : fields) AppendField(field.key, field.value, &line);
  return line;
}

}  // namespace annulus
