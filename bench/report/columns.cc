#include "bench/report/columns.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace annulus {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const Columns::Value& value) {
  return std::visit(
      [](const auto& v) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::monostate>) {
          return nullptr;
        } else {
          return v;
        }
      },
      value);
}

// Text that is not UTF-8 is replaced: a line must be one that every reader takes.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string CsvField(const Columns::Value& value) {
  if (std::holds_alternative<std::monostate>(value)) return "";
  const auto* text = std::get_if<std::string>(&value);
  if (text == nullptr) {
    const auto* number = std::get_if<double>(&value);
    // JSON's null is no field of CSV: what is no number is empty.
    if (number != nullptr && !std::isfinite(*number)) return "";
    return Dump(ToJson(value));
  }
  if (text->find_first_of(",\"\r\n") == std::string::npos) return *text;
  return absl::StrCat("\"", absl::StrReplaceAll(*text, {{"\"", "\"\""}}), "\"");
}

}  // namespace

std::string Columns::CsvHeader() const {
  std::string line;
  for (const auto& [name, value] : columns_) absl::StrAppend(&line, line.empty() ? "" : ",", name);
  return line + "\n";
}

std::string Columns::CsvLine() const {
  std::string line;
  for (size_t i = 0; i < columns_.size(); ++i) {
    absl::StrAppend(&line, i == 0 ? "" : ",", CsvField(columns_[i].second));
  }
  return line + "\n";
}

std::string Columns::JsonLine() const {
  Json line = Json::object();
  for (const auto& [name, value] : columns_) line[name] = ToJson(value);
  return Dump(line) + "\n";
}

}  // namespace annulus
