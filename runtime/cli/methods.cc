// `annulus methods`: the words of the pattern language and the methods that are asked for by them.
#include "attention/methods.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/patterns/word.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/report/pattern_picture.h"

namespace annulus {
namespace {

// A line of the table, whichever it comes from.
struct Entry {
  std::string kind;  // word | method
  std::string name;
  std::string form;
  std::string meaning;
  std::string source;
  std::string example;
};

template <typename From>
Entry EntryOf(const char* kind, const From& from) {
  return {kind,
          std::string(from.name),
          std::string(from.form),
          std::string(from.meaning),
          std::string(from.source),
          std::string(from.example)};
}

std::vector<Entry> Entries() {
  std::vector<Entry> entries;
  for (const PatternWord& word : PatternWords()) entries.push_back(EntryOf("word", word));
  for (const Method& method : Methods()) entries.push_back(EntryOf("method", method));
  return entries;
}

std::string ToJson(const Entry& entry) {
  const nlohmann::ordered_json line = {{"kind", entry.kind},     {"name", entry.name},
                                       {"form", entry.form},     {"meaning", entry.meaning},
                                       {"source", entry.source}, {"example", entry.example}};
  return absl::StrCat(line.dump(), "\n");
}

void PrintText(const std::vector<Entry>& entries, std::ostream& out) {
  const std::pair<const char*, const char*> parts[] = {
      {"word", "The words of the pattern language"}, {"method", "Methods, and their patterns"}};
  for (const auto& [kind, title] : parts) {
    out << title << "\n\n";
    for (const Entry& entry : entries) {
      if (entry.kind != kind) continue;
      if (entry.kind != "word") out << entry.name << ": ";
      out << entry.form << "\n    " << entry.meaning;
      if (!entry.source.empty()) out << " [" << entry.source << "]";
      out << "\n";
    }
    out << "\n";
  }
}

absl::Status WritePictures(const std::vector<Entry>& entries, const std::string& folder) {
  if (!std::filesystem::is_directory(folder)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--pictures: ", Quoted(folder), "; expected a folder that is there"));
  }
  for (const Entry& entry : entries) {
    if (entry.example.empty()) continue;
    ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Parse(entry.example, kMethodKvHeads));
    const std::string name =
        absl::StrReplaceAll(absl::AsciiStrToLower(entry.name), {{", ", "-"}, {" ", "-"}});
    ANNULUS_RETURN_IF_ERROR(WriteFile(absl::StrCat(folder, "/", entry.kind, "-", name, ".svg"),
                                      {PatternPicture(pattern, kMethodTokens)}));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunMethods(const Arguments& args, const Console& console) {
  std::string pictures;
  bool json = false;
  Options options("methods", "The words of the pattern language, and attention methods by them.");
  options.Add("pictures", "FOLDER", "also a picture of each one's example, as SVG",
              SetText(&pictures));
  options.AddFlag("json", "one JSON line for each on stdout", &json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  const std::vector<Entry> entries = Entries();
  if (!pictures.empty()) ANNULUS_RETURN_IF_ERROR(WritePictures(entries, pictures));
  if (json) {
    for (const Entry& entry : entries) *console.out << ToJson(entry);
  } else {
    PrintText(entries, *console.out);
  }
  *console.out << std::flush;
  return absl::OkStatus();
}

}  // namespace annulus
