#include "base/quoted.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace annulus {

std::string Quoted(absl::string_view text, size_t bytes_max) {
  const bool cut = text.size() > bytes_max;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, bytes_max)), cut ? "\"…" : "\"");
}

std::string QuotedEnd(absl::string_view text, size_t bytes_max) {
  const bool cut = text.size() > bytes_max;
  if (cut) text.remove_prefix(text.size() - bytes_max);
  return absl::StrCat(cut ? "…\"" : "\"", absl::CHexEscape(text), "\"");
}

}  // namespace annulus
