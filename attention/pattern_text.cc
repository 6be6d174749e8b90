#include "attention/pattern_text.h"

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace annulus {

void PatternText::SkipBlanks() {
  while (at_ < text_.size() && absl::ascii_isspace(text_[at_])) ++at_;
}

bool PatternText::AtEnd() {
  SkipBlanks();
  return at_ == text_.size();
}

bool PatternText::Accept(char c) {
  if (AtEnd() || text_[at_] != c) return false;
  ++at_;
  return true;
}

absl::Status PatternText::Expect(char c) {
  if (Accept(c)) return absl::OkStatus();
  return Expected(absl::StrCat("\"", std::string(1, c), "\""));
}

absl::string_view PatternText::Word() {
  SkipBlanks();
  size_t end = at_;
  while (end < text_.size() && (absl::ascii_isalnum(text_[end]) || text_[end] == '_')) ++end;
  return text_.substr(at_, end - at_);
}

absl::StatusOr<int64_t> PatternText::ParseNumber(absl::string_view what, int64_t least) {
  const absl::string_view word = Word();
  int64_t number = 0;
  if (word.empty() || !std::all_of(word.begin(), word.end(), absl::ascii_isdigit) ||
      !absl::SimpleAtoi(word, &number) || number < least) {
    return Expected(absl::StrCat("a number from ", least, " to 2^63 - 1 for ", what));
  }
  at_ += word.size();
  return number;
}

absl::Status PatternText::Refuse(size_t at, absl::string_view expected,
                                 absl::string_view found) const {
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: at ", at + 1, ": expected ", expected, ", found ", found));
}

absl::Status PatternText::Expected(absl::string_view expected) {
  constexpr size_t kFoundBytesMax = 24;
  if (AtEnd()) return Refuse(at_, expected, "the end of the text");
  absl::string_view found = Word();
  if (found.empty()) found = text_.substr(at_, 1);
  const bool cut = found.size() > kFoundBytesMax;
  return Refuse(
      at_, expected,
      absl::StrCat("\"", absl::CHexEscape(found.substr(0, kFoundBytesMax)), cut ? "…\"" : "\""));
}

}  // namespace annulus
