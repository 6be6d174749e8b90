// What the readers of this folder share: JSON objects, their fields, and what is said of those that
// are not as expected. For .cc files only: it brings nlohmann-json.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/quoted.h"

namespace annulus {

using Json = nlohmann::json;

// Texts of no more may be told where a name is wanted: tokens are longer.
inline constexpr size_t kToldBytesMax = 24;

// What stands where a value is not told: "a text of 64 bytes", "an object of 3 fields".
inline std::string TypeOf(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    case Json::value_t::string:
      return absl::StrCat("a text of ", value.get_ref<const std::string&>().size(), " bytes");
    case Json::value_t::object:
      return absl::StrCat("an object of ", value.size(), " fields");
    case Json::value_t::array:
      return absl::StrCat("a list of ", value.size());
    default:
      return "a number";
  }
}

// INVALID_ARGUMENT: "tokens[2].sha256: a text of 43 bytes; expected 64 hex digits". The value may
// be a secret, or hold one, that somebody put into this place: it is not told.
inline absl::Status Unexpected(absl::string_view field, const Json& found,
                               absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", TypeOf(found), "; expected ", expected));
}

// The same with the value, of fields that name things: "tokens[2].role: "king"; expected admin, …".
// Lists and objects, and texts as long as tokens are, are not told here either.
inline absl::Status UnexpectedName(absl::string_view field, const Json& found,
                                   absl::string_view expected) {
  const std::string* const text = found.get_ptr<const std::string*>();
  const bool told = found.is_number() || (text != nullptr && text->size() <= kToldBytesMax);
  if (!told) return Unexpected(field, found, expected);
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": ", text == nullptr ? found.dump() : Quoted(*text), "; expected ", expected));
}

// A field's name, where it may be something else: `"roel"`, "of 43 bytes".
inline std::string ToldName(absl::string_view name) {
  return name.size() <= kToldBytesMax ? Quoted(name) : absl::StrCat("of ", name.size(), " bytes");
}

// A field of an object; nullptr if it has none of this name.
inline const Json* Find(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

// What is wrong with a text that is no JSON, and where. `read`: bytes of it, up to the last one
// that fits nowhere.
inline absl::Status NoJson(absl::string_view what, absl::string_view text, size_t read) {
  const size_t at = std::min(read == 0 ? 0 : read - 1, text.size());
  const absl::string_view before = text.substr(0, at);
  const size_t line = before.rfind('\n');
  const size_t column = line == absl::string_view::npos ? at : at - line - 1;
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": ", at == text.size() ? "the end" : Quoted(text.substr(at, 1)),
                   " at line ", 1 + std::count(before.begin(), before.end(), '\n'), ", column ",
                   column + 1, "; expected JSON"));
}

// A whole text. Names that come twice in an object are refused: readers differ in which one counts.
// `what` names the text in errors.
inline absl::StatusOr<Json> ParseObject(absl::string_view what, absl::string_view text) {
  std::vector<std::set<std::string>> names;  // of the objects that are open
  std::string twice;
  const auto look = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(parsed).second) twice = parsed;
    return true;
  };
  Json object;
  try {
    object = Json::parse(text.begin(), text.end(), look);
  } catch (const Json::parse_error& error) {
    return NoJson(what, text, error.byte);
  } catch (const Json::exception&) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": a number beyond what a float64 holds; expected JSON without such"));
  }
  if (!object.is_object()) return Unexpected(what, object, "a JSON object");
  if (twice.empty()) return object;
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": name ", ToldName(twice), " comes twice in an object; expected once"));
}

}  // namespace annulus
