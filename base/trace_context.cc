#include "base/trace_context.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/secret.h"

namespace annulus {
namespace {

constexpr size_t kTraceIdDigits = 32;
constexpr size_t kSpanIdDigits = 16;
constexpr size_t kLength = 2 + 1 + kTraceIdDigits + 1 + kSpanIdDigits + 1 + 2;

bool IsHexDigit(char c) {  // lower case alone
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), IsHexDigit);
}

bool IsId(absl::string_view text) {
  return IsHex(text) && std::any_of(text.begin(), text.end(), [](char c) { return c != '0'; });
}

// Never all zeros, which is no id.
std::string RandomHex(size_t digits) {
  std::string bytes(digits / 2, '\0');
  do {
    FillRandom({reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
  } while (std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == 0; }));
  return absl::BytesToHexString(bytes);
}

}  // namespace

// What later versions add comes after another dash, and is ignored.
std::optional<TraceContext> ParseTraceparent(absl::string_view text) {
  if (text.size() < kLength) return std::nullopt;
  const absl::string_view version = text.substr(0, 2);
  const absl::string_view trace_id = text.substr(3, kTraceIdDigits);
  const absl::string_view span_id = text.substr(4 + kTraceIdDigits, kSpanIdDigits);
  const absl::string_view flags = text.substr(5 + kTraceIdDigits + kSpanIdDigits, 2);
  const bool dashes = text[2] == '-' && text[3 + kTraceIdDigits] == '-' &&
                      text[4 + kTraceIdDigits + kSpanIdDigits] == '-';
  const bool whole = text.size() == kLength || (version != "00" && text[kLength] == '-');
  if (!dashes || !whole || !IsHex(version) || version == "ff" || !IsId(trace_id) ||
      !IsId(span_id) || !IsHex(flags)) {
    return std::nullopt;
  }
  const std::string bits = absl::HexStringToBytes(flags);
  return TraceContext{std::string(trace_id), std::string(span_id), (bits[0] & 1) != 0};
}

std::string ToTraceparent(const TraceContext& trace) {
  if (!trace.given() || trace.span_id.empty()) return "";
  return absl::StrCat("00-", trace.trace_id, "-", trace.span_id, trace.sampled ? "-01" : "-00");
}

TraceContext NewTrace() {
  return {RandomHex(kTraceIdDigits), "", true};
}

std::string NewSpanId() {
  return RandomHex(kSpanIdDigits);
}

}  // namespace annulus
