#include "runtime/cli/quality/report.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "runtime/cli/report/table.h"

namespace annulus {
namespace {

constexpr char kNone[] = "-";

using Json = nlohmann::ordered_json;

void AddRecall(const std::string& task, const std::optional<RecallFigures>& figures, Json* row) {
  const auto put = [&](const char* name, const Json& value) {
    (*row)[absl::StrCat(task, "_", name)] = figures.has_value() ? value : Json();
  };
  const RecallFigures of = figures.value_or(RecallFigures{});
  put("asked", of.asked);
  put("seen", of.seen);
  put("found", of.found);
  put("stray", of.stray);
}

Json ToJson(const QualityRow& row) {
  Json json = {{"pattern", row.pattern}};
  const MassFigures mass = row.mass.value_or(MassFigures{});
  const auto put = [&](const char* name, std::optional<double> value) {
    json[name] = row.mass.has_value() && value.has_value() ? Json(*value) : Json();
  };
  put("density", mass.density);
  put("mass", mass.mass);
  put("error", mass.error);
  put("speed", mass.speed);
  put("decode_bytes", mass.decode_bytes);
  put("decode_speed", mass.decode_speed);
  AddRecall("needle", row.needle, &json);
  json["needle_places"] = row.needle.has_value() ? Json(row.needle->places) : Json();
  AddRecall("mqar", row.mqar, &json);
  json["kept"] = mass.kept.has_value() ? Json(*mass.kept) : Json();
  put("compress_steps", mass.compress_steps);
  return json;
}

std::string CsvField(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  return absl::StrCat("\"", absl::StrReplaceAll(value.get<std::string>(), {{"\"", "\"\""}}), "\"");
}

std::string RecallText(const std::optional<RecallFigures>& figures) {
  if (!figures.has_value()) return kNone;
  return absl::StrFormat("%d of %d, %d seen", figures->found + figures->stray, figures->asked,
                         figures->seen);
}

}  // namespace

std::string QualityText(absl::Span<const QualityRow> rows) {
  using enum Table::Align;
  Table table({{"pattern", kLeft},
               {"pairs"},
               {"mass"},
               {"error"},
               {"speed"},
               {"decode bytes"},
               {"decode speed"},
               {"kept keys"},
               {"made in steps"},
               {"needle", kLeft},
               {"by depth", kLeft},
               {"MQAR", kLeft}});
  for (const QualityRow& row : rows) {
    const MassFigures mass = row.mass.value_or(MassFigures{});
    const auto cell = [&](const char* format, std::optional<double> value) {
      if (!row.mass.has_value() || !value.has_value()) return std::string(kNone);
      return absl::StrFormat(*absl::ParsedFormat<'f'>::New(format), *value);
    };
    const std::string kept = mass.kept.has_value() ? absl::StrCat(*mass.kept) : kNone;
    table.AddRow({row.pattern, cell("%.3f", mass.density), cell("%.3f", mass.mass),
                  cell("%.3f", mass.error), cell("%.2f×", mass.speed),
                  cell("%.3f", mass.decode_bytes), cell("%.2f×", mass.decode_speed), kept,
                  cell("%.1f", mass.compress_steps), RecallText(row.needle),
                  row.needle.has_value() ? row.needle->places : kNone, RecallText(row.mqar)});
  }
  return table.ToText();
}

std::string QualityJson(absl::Span<const QualityRow> rows) {
  std::string text;
  for (const QualityRow& row : rows) absl::StrAppend(&text, ToJson(row).dump(), "\n");
  return text;
}

std::string QualityCsv(absl::Span<const QualityRow> rows) {
  std::string text;
  for (const QualityRow& row : rows) {
    const Json json = ToJson(row);
    std::string names, values;
    for (const auto& [name, value] : json.items()) {
      const char* comma = names.empty() ? "" : ",";
      absl::StrAppend(&names, comma, name);
      absl::StrAppend(&values, comma, CsvField(value));
    }
    if (text.empty()) absl::StrAppend(&text, names, "\n");
    absl::StrAppend(&text, values, "\n");
  }
  return text;
}

}  // namespace annulus
