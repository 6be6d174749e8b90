#include "runtime/telemetry/trace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"

namespace annulus {
namespace {

using Json = nlohmann::ordered_json;

// Values of OTLP's enums.
constexpr int kKindInternal = 1;
constexpr int kKindServer = 2;
constexpr int kStatusOk = 1;
constexpr int kStatusError = 2;

Json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

Json SpanOf(const TraceContext& trace, const std::string& parent_id, const std::string& id,
            const TraceSpan& span, int kind) {
  Json json = {{"traceId", trace.trace_id}, {"spanId", id}};
  if (!parent_id.empty()) json["parentSpanId"] = parent_id;
  json["name"] = span.name;
  json["kind"] = kind;
  json["startTimeUnixNano"] = absl::StrCat(span.begin_ns);
  json["endTimeUnixNano"] = absl::StrCat(std::max(span.begin_ns, span.end_ns));
  return json;
}

}  // namespace

std::string OtlpLine(const FinishedSpan& span, const std::string& service,
                     const std::string& instance) {
  Json whole = SpanOf(span.parent, span.parent.span_id, span.span_id, span.span, kKindServer);
  Json attributes = Json::array();
  for (const auto& [key, value] : span.attributes) attributes.push_back(Attribute(key, value));
  whole["attributes"] = std::move(attributes);
  whole["status"] = span.failure.empty() ? Json{{"code", kStatusOk}}
                                         : Json{{"code", kStatusError}, {"message", span.failure}};
  Json spans = Json::array({std::move(whole)});
  for (const TraceSpan& part : span.parts) {
    spans.push_back(SpanOf(span.parent, span.span_id, NewSpanId(), part, kKindInternal));
  }
  Json resource = {{"attributes", Json::array({Attribute("service.name", service),
                                               Attribute("service.instance.id", instance)})}};
  Json scope = {{"scope", {{"name", "annulus"}}}, {"spans", std::move(spans)}};
  const Json line = {
      {"resourceSpans", Json::array({Json{{"resource", std::move(resource)},
                                          {"scopeSpans", Json::array({std::move(scope)})}}})}};
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<std::unique_ptr<TraceFile>> TraceFile::Open(const std::string& path,
                                                           const std::string& service,
                                                           const std::string& instance) {
  if (path.empty()) return std::unique_ptr<TraceFile>();
  std::unique_ptr<TraceFile> file(new TraceFile(service, instance));
  file->fd_ = UniqueFd(open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640));
  if (file->fd_.is_open()) return file;
  return absl::InvalidArgumentError(absl::StrCat("--trace-out: ", QuotedEnd(path), ": ",
                                                 std::strerror(errno),
                                                 "; expected a file that can be written to"));
}

void TraceFile::Write(const FinishedSpan& span) {
  const std::string line = OtlpLine(span, service_, instance_) + "\n";
  (void)!write(fd_.get(), line.data(), line.size());
}

SpanSink TraceFile::SinkOf(TraceFile* file) {
  if (file == nullptr) return {};
  return [file](const FinishedSpan& span) { file->Write(span); };
}

}  // namespace annulus
