// TraceFile: spans as OTLP in JSON, an ExportTraceServiceRequest a line (OpenTelemetry's file
// exporter), so that any collector takes them in. A file that cannot be written to holds nobody up:
// lines are left out then. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/trace_context.h"
#include "base/unique_fd.h"

namespace annulus {

// One line, without its end. `service` and `instance`: whose span it is ("annulus-worker", "w-3").
// Text that is not UTF-8 is replaced.
std::string OtlpLine(const FinishedSpan& span, const std::string& service,
                     const std::string& instance);

class TraceFile {
 public:
  // Adds to the file. nullptr without a path; INVALID_ARGUMENT names it and what the system said.
  static absl::StatusOr<std::unique_ptr<TraceFile>> Open(const std::string& path,
                                                         const std::string& service,
                                                         const std::string& instance);

  void Write(const FinishedSpan& span);

  // Of a file that there may be; outlived by it.
  static SpanSink SinkOf(TraceFile* file);

 private:
  TraceFile(const std::string& service, const std::string& instance)
      : service_(service), instance_(instance) {}

  const std::string service_;
  const std::string instance_;
  UniqueFd fd_;  // each line is one write at the file's end, whoever else adds to it
};

}  // namespace annulus
