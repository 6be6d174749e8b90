// Structured logs: one line per event on stderr, in logfmt:
//   time=2026-01-02T03:04:05.678901Z level=info event="worker joined" worker=3 name=w3
// An event is logged once, where it is decided. Values are escaped and cut, since some of them come
// from outside. Thread-safe.
#pragma once

#include <initializer_list>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace annulus {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// "debug", "info", "warning", "error", "off". INVALID_ARGUMENT names the text.
absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view text);

// Events below `level` are dropped from now on, in the whole process. kInfo at the start.
void SetLogLevel(LogLevel level);

// A key (lower case, no spaces) and any value that StrCat takes.
struct LogField {
  LogField(absl::string_view key, const absl::AlphaNum& value) : key(key), value(value.Piece()) {}

  absl::string_view key;
  std::string value;
};

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

// The line that Log writes, without time and level. For tests and for other sinks.
std::string LogLine(absl::string_view event, std::initializer_list<LogField> fields);

}  // namespace annulus
