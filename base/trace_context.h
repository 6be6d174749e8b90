// TraceContext: where work stands in a distributed trace, as W3C Trace Context says it: the trace,
// the span that the work belongs to, and whether spans are recorded. Plain values; thread-safe
// functions.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "annulus/types.h"

namespace annulus {

// Where a call's metadata has its traceparent.
inline constexpr char kTraceparentKey[] = "traceparent";

struct TraceContext {
  std::string trace_id = {};  // 32 hex digits; empty: there is no trace
  std::string span_id = {};   // 16 hex digits; empty: none yet, the next span is the trace's root
  bool sampled = false;

  bool given() const { return !trace_id.empty(); }
  bool recorded() const { return given() && sampled; }
};

// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01". nullopt: it is none.
std::optional<TraceContext> ParseTraceparent(absl::string_view text);
// Empty for none, and before its first span.
std::string ToTraceparent(const TraceContext& trace);

// A trace of its own that is recorded, and names of spans. Random.
TraceContext NewTrace();
std::string NewSpanId();

// A span that is over, with what was done within it.
struct FinishedSpan {
  TraceContext parent;
  std::string span_id;
  TraceSpan span;
  std::string failure = {};  // empty: it went well
  std::vector<std::pair<std::string, std::string>> attributes = {};
  std::vector<TraceSpan> parts = {};
};
// Thread-safe; does not block for long.
using SpanSink = std::function<void(const FinishedSpan&)>;

}  // namespace annulus
