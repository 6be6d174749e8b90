#include "attention/pattern_reader.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "attention/pattern.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr size_t kFoundBytesMax = 24;

// Decimal digits alone, so that no sign and no blank passes.
bool IsNumber(absl::string_view word, int64_t least, int64_t* number) {
  return !word.empty() && std::all_of(word.begin(), word.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(word, number) && *number >= least;
}

}  // namespace

void PatternReader::SkipBlanks() {
  while (at_ < text_.size() && absl::ascii_isspace(text_[at_])) ++at_;
}

bool PatternReader::AtEnd() {
  SkipBlanks();
  return at_ == text_.size();
}

bool PatternReader::Accept(char c) {
  if (!Stands(c)) return false;
  ++at_;
  return true;
}

absl::Status PatternReader::Expect(char c) {
  if (Accept(c)) return absl::OkStatus();
  return Expected(absl::StrCat("\"", std::string(1, c), "\""));
}

absl::string_view PatternReader::Word() {
  SkipBlanks();
  size_t end = at_;
  while (end < text_.size() && (absl::ascii_isalnum(text_[end]) || text_[end] == '_')) ++end;
  return text_.substr(at_, end - at_);
}

absl::Status PatternReader::Refuse(size_t at, absl::string_view expected,
                                   absl::string_view found) const {
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: at ", at + 1, ": ", found, "; expected ", expected));
}

absl::Status PatternReader::Expected(absl::string_view expected) {
  if (AtEnd()) return Refuse(at_, expected, "the end of the text");
  absl::string_view found = Word();
  if (found.empty()) found = text_.substr(at_, 1);
  const bool cut = found.size() > kFoundBytesMax;
  return Refuse(
      at_, expected,
      absl::StrCat("\"", absl::CHexEscape(found.substr(0, kFoundBytesMax)), cut ? "…\"" : "\""));
}

absl::Status PatternReader::CountParts(size_t at, size_t more) {
  parts_ += static_cast<int64_t>(more);
  if (parts_ <= kPatternPartsMax) return absl::OkStatus();
  return Refuse(at,
                absl::StrCat("at most ", kPatternPartsMax, " parts over all KV heads ",
                             "(pattern_parts_max)"),
                "more");
}

absl::StatusOr<std::vector<PatternReader::Value>> PatternReader::ReadArguments(
    absl::Span<const Argument> arguments) {
  std::vector<Value> values(arguments.size());
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  size_t place = 0;
  by_name_ = false;
  do {
    ANNULUS_RETURN_IF_ERROR(ReadArgument(arguments, place++, &values));
  } while (Accept(','));
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].required && !values[i].given) {
      return Expected(absl::StrCat("\",\" and ", arguments[i].name));
    }
  }
  if (!Accept(')')) return Expected("\",\" or \")\"");
  return values;
}

absl::StatusOr<std::vector<PatternReader::Value>> PatternReader::ReadFirstArguments(
    absl::Span<const Argument> arguments) {
  std::vector<Value> values(arguments.size());
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  for (size_t i = 0; i < arguments.size(); ++i) {
    ANNULUS_RETURN_IF_ERROR(ReadValue(arguments[i], &values[i]));
    ANNULUS_RETURN_IF_ERROR(Expect(','));
  }
  return values;
}

absl::StatusOr<std::vector<PatternReader::Value>> PatternReader::ReadNumbers(absl::string_view what,
                                                                             int64_t least) {
  std::vector<Value> values;
  do {
    values.emplace_back();
    ANNULUS_RETURN_IF_ERROR(ReadValue({what, least, true}, &values.back()));
  } while (Accept(','));
  if (!Accept(')')) return Expected("\",\" or \")\"");
  return values;
}

absl::StatusOr<int64_t> PatternReader::ReadNumber(absl::string_view what, int64_t least) {
  Value value;
  ANNULUS_RETURN_IF_ERROR(ReadValue({what, least, true}, &value));
  return value.number();
}

// The argument in `place`: by name, or by position if all before it went by position.
absl::Status PatternReader::ReadArgument(absl::Span<const Argument> arguments, size_t place,
                                         std::vector<Value>* values) {
  const absl::string_view word = Word();
  size_t index = place;
  if (!word.empty() && !absl::ascii_isdigit(word[0])) {
    const auto named = [word](const Argument& argument) { return argument.name == word; };
    index = std::find_if(arguments.begin(), arguments.end(), named) - arguments.begin();
    if (index == arguments.size()) {
      const auto name = [](std::string* out, const Argument& a) { absl::StrAppend(out, a.name); };
      return Expected(absl::StrCat("a number or one of ", absl::StrJoin(arguments, ", ", name)));
    }
    if ((*values)[index].given) return Expected("each argument once");
    Take(word);
    ANNULUS_RETURN_IF_ERROR(Expect('='));
    by_name_ = true;
  } else if (by_name_) {
    return Expected("name=number after an argument by name");
  } else if (place == arguments.size()) {
    return Expected(absl::StrCat("at most ", arguments.size(), " arguments"));
  }
  return ReadValue(arguments[index], &(*values)[index]);
}

std::string PatternReader::Value::DecimalText() const {
  if (number() >= kDecimalParts) return "1";
  std::string digits = absl::StrCat(number() + kDecimalParts);  // whose first digit is 1
  digits.erase(digits.find_last_not_of('0') + 1);
  return absl::StrCat("0.", digits.substr(1));
}

absl::Status PatternReader::ReadDecimal(const Argument& argument, Value* value) {
  static constexpr size_t kDigits = 9;  // of kDecimalParts
  const absl::string_view whole = Word();
  absl::string_view rest = text_.substr(at_ + whole.size());
  std::string digits;
  size_t size = whole.size();
  if (!rest.empty() && rest[0] == '.') {
    const auto is_digit = [](char c) { return absl::ascii_isdigit(c); };
    const auto end = std::find_if_not(rest.begin() + 1, rest.end(), is_digit);
    digits.assign(rest.begin() + 1, end);
    size += 1 + digits.size();
  }
  const bool fits = digits.size() <= kDigits && (digits.empty() == (size == whole.size()));
  int64_t number = 0, parts = 0;
  digits.resize(kDigits, '0');
  if (!fits || !IsNumber(whole, 0, &number) || !IsNumber(digits, 0, &parts) || number > 1 ||
      number * kDecimalParts + parts > kDecimalParts || number + parts == 0) {
    return Expected(absl::StrCat("a number above 0 and at most 1 for ", argument.name, ", with ",
                                 kDigits, " decimals at most"));
  }
  value->numbers.push_back(number * kDecimalParts + parts);
  at_ += size;
  return absl::OkStatus();
}

absl::Status PatternReader::ReadValue(const Argument& argument, Value* value) {
  const absl::string_view word = Word();
  value->at = at_;
  value->given = true;
  if (argument.decimal) return ReadDecimal(argument, value);
  const std::vector<absl::string_view> numbers =
      argument.numbers_max == 1 ? std::vector<absl::string_view>{word} : absl::StrSplit(word, 'x');
  const std::string of_each =
      absl::StrCat("a number from ", argument.least, " to 2^63 - 1 for ", argument.name);
  if (numbers.size() > argument.numbers_max) {
    return Expected(absl::StrCat(of_each, ", or up to ", argument.numbers_max, " joined by x"));
  }
  for (const absl::string_view one : numbers) {
    int64_t number = 0;
    if (!IsNumber(one, argument.least, &number)) return Expected(of_each);
    value->numbers.push_back(number);
  }
  Take(word);
  return absl::OkStatus();
}

}  // namespace annulus
