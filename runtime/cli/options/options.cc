#include "runtime/cli/options/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/mapped_file.h"
#include "base/status.h"
#include "runtime/cli/options/config_file.h"
#include "runtime/cli/options/variables.h"

namespace annulus {
namespace {

constexpr char kConfig[] = "config";

// Every command's name may head a section of a file that several commands share.
constexpr absl::string_view kCommands[] = {
    "attend",  "bench",   "contexts", "coordinator", "demo",    "explain", "methods",
    "quality", "release", "status",   "up",          "version", "worker"};

std::string VariableOf(const std::string& option) {
  return absl::StrCat(kVariablePrefix,
                      absl::AsciiStrToUpper(absl::StrReplaceAll(option, {{"-", "_"}})));
}

absl::StatusOr<bool> ParseSwitch(absl::string_view text) {
  bool value = false;
  if (absl::SimpleAtob(text, &value)) return value;
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected true or false"));
}

// In our words what CLI11 says of flags: "--tokens: …", or "…: --json = maybe".
absl::Status RefusedFlags(const CLI::ParseError& error, const std::vector<std::string>& unknown,
                          absl::string_view title) {
  if (!unknown.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        Quoted(unknown[0]), ": unknown; expected an option of ", title, ": --help lists them"));
  }
  const absl::string_view what = error.what();
  const size_t begin = std::min(what.find("--"), what.size());
  const absl::string_view flag = what.substr(begin, what.find_first_of(": =", begin) - begin);
  const size_t value = what.find(" = ");
  return absl::InvalidArgumentError(
      absl::StrCat(absl::CHexEscape(flag.substr(0, 80)), ": ",
                   value == absl::string_view::npos
                       ? "given twice, or without a value; expected once, with one value"
                       : absl::StrCat(Quoted(what.substr(value + 3)), "; expected true or false")));
}

}  // namespace

absl::StatusOr<int64_t> ParseCount(absl::string_view text, int64_t low, int64_t high) {
  const absl::string_view whole = text;
  int shift = 0;
  if (!text.empty()) {
    const size_t unit = absl::string_view("KMG").find(text.back());
    if (unit != absl::string_view::npos) {
      shift = 10 * (static_cast<int>(unit) + 1);
      text.remove_suffix(1);
    }
  }
  bool good = !text.empty();
  for (const char c : text) good = good && absl::ascii_isdigit(static_cast<unsigned char>(c));
  int64_t number = 0;
  good = good && absl::SimpleAtoi(text, &number) && number <= (INT64_MAX >> shift);
  number = good ? number << shift : 0;
  if (good && number >= low && number <= high) return number;
  return absl::InvalidArgumentError(absl::StrCat(Quoted(whole), "; expected an integer from ", low,
                                                 " to ", high, " (K, M, G: 2^10, 2^20, 2^30)"));
}

OptionSetter SetText(std::string* value) {
  return [value](absl::string_view text) {
    *value = std::string(text);
    return absl::OkStatus();
  };
}

OptionSetter SetText(std::optional<std::string>* value) {
  return [value](absl::string_view text) {
    *value = std::string(text);
    return absl::OkStatus();
  };
}

OptionSetter SetFloat(std::optional<float>* value) {
  return [value](absl::string_view text) -> absl::Status {
    float number = 0;
    if (!absl::SimpleAtof(text, &number) || !std::isfinite(number)) {
      return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected a finite number"));
    }
    *value = number;
    return absl::OkStatus();
  };
}

Options::Options(std::string command, std::string description, absl::string_view program)
    : command_(std::move(command)),
      title_(command_.empty() ? std::string(program) : absl::StrCat(program, " ", command_)),
      description_(std::move(description)) {}

void Options::Add(const std::string& name, const std::string& placeholder, const std::string& help,
                  OptionSetter set) {
  options_.push_back({name, placeholder, help, std::move(set)});
}

void Options::AddRequired(const std::string& name, const std::string& placeholder,
                          const std::string& help, OptionSetter set) {
  options_.push_back({name, placeholder, help, std::move(set), /*required=*/true});
}

void Options::AddOptional(const std::string& name, const std::string& placeholder,
                          const std::string& help, const std::string& alone, OptionSetter set) {
  options_.push_back({name, placeholder, help, std::move(set), /*required=*/false,
                      /*is_flag=*/false, alone});
}

void Options::AddWords(const std::string& name, const std::string& placeholder,
                       const std::string& help, OptionSetter set) {
  options_.push_back({name, placeholder, help, std::move(set), /*required=*/false,
                      /*is_flag=*/false, /*alone=*/{}, /*is_words=*/true});
}

void Options::AddRepeated(const std::string& name, const std::string& placeholder,
                          const std::string& help, OptionSetter set) {
  Add(name, placeholder, help, std::move(set));
  options_.back().is_repeated = true;
}

void Options::AddFlag(const std::string& name, const std::string& help, bool* value) {
  options_.push_back(
      {name, "", help, SetParsed(value, ParseSwitch), /*required=*/false, /*is_flag=*/true});
}

absl::StatusOr<std::optional<std::string>> Options::Parse(const std::vector<std::string>& args,
                                                          const Environment& environment) const {
  GivenByName given;
  ANNULUS_ASSIGN_OR_RETURN(std::optional<std::string> help, ReadFlags(args, &given));
  if (help.has_value()) return help;
  ReadEnvironment(environment, &given);
  if (const auto config = given.find(kConfig); config != given.end()) {
    ANNULUS_RETURN_IF_ERROR(ReadFile(config->second.text, &given));
    given.erase(kConfig);
  }
  ANNULUS_RETURN_IF_ERROR(Resolve(std::move(given)));
  return std::nullopt;
}

// CLI11 reads the flags and writes the help; values stay text, so that all sources are checked by
// the same code and refused in the same words.
absl::StatusOr<std::optional<std::string>> Options::ReadFlags(const std::vector<std::string>& args,
                                                              GivenByName* given) const {
  CLI::App app(description_, title_);
  std::map<std::string, std::string> texts;
  std::map<std::string, bool> switches;
  std::map<std::string, std::vector<std::string>> words, repeated;
  for (const Option& option : options_) {
    const std::string flag = absl::StrCat("--", option.name);
    const std::string help = absl::StrCat(option.help, option.required ? " (required)" : "", " [",
                                          VariableOf(option.name), "]");
    if (option.is_flag) {
      app.add_flag(flag, switches[option.name], help);
    } else if (option.is_words) {
      app.add_option(option.name, words[option.name], help)->type_name(option.placeholder);
    } else if (option.is_repeated) {
      app.add_option(flag, repeated[option.name], help)
          ->type_name(option.placeholder)
          ->allow_extra_args(false);
    } else {
      CLI::Option* added = app.add_option(flag, texts[option.name], help);
      added->type_name(option.placeholder);
      if (!option.alone.empty()) added->expected(0, 1)->default_str(option.alone);
    }
  }
  app.add_option("--config", texts[kConfig], "a file of options, key = value [ANNULUS_CONFIG]")
      ->type_name("F");
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::ParseError& error) {
    return RefusedFlags(error, app.remaining(), title_);
  }
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_single_name();
    if (option->count() == 0) continue;
    const auto on = switches.find(name);
    if (const auto all = repeated.find(name); all != repeated.end()) {
      given->emplace(name, Given{Source::kFlag,
                                 absl::StrCat("--", name),
                                 all->second.front(),
                                 {all->second.begin() + 1, all->second.end()}});
      continue;
    }
    const auto list = words.find(name);
    const std::string text = on != switches.end()  ? (on->second ? "true" : "false")
                             : list != words.end() ? absl::StrJoin(list->second, " ")
                                                   : texts[name];
    const char* dashes = list != words.end() ? "" : "--";
    given->emplace(name, Given{Source::kFlag, absl::StrCat(dashes, name), text});
  }
  return std::nullopt;
}

void Options::ReadEnvironment(const Environment& environment, GivenByName* given) const {
  const auto read = [&](const std::string& name) {
    const std::string variable = VariableOf(name);
    const char* text = environment(variable);
    // An empty variable is how shells and charts leave one out.
    if (text == nullptr || *text == '\0') return;
    given->emplace(name, Given{Source::kEnvironment, variable, text});
  };
  for (const Option& option : options_) read(option.name);
  read(kConfig);
}

absl::Status Options::ReadFile(const std::string& path, GivenByName* given) const {
  ANNULUS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const absl::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                               file.bytes().size());
  const std::string label = absl::StrCat("file ", QuotedEnd(path));
  absl::StatusOr<std::vector<ConfigEntry>> entries = ParseConfig(text);
  if (!entries.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(label, ": ", entries.status().message()));
  }
  GivenByName found;
  for (const ConfigEntry& entry : *entries) {
    if (!entry.section.empty() && entry.section != command_) {
      if (std::count(std::begin(kCommands), std::end(kCommands), entry.section) != 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(label, ": section ", Quoted(entry.section),
                                                     ": unknown; expected a command's name"));
    }
    const bool known = std::any_of(options_.begin(), options_.end(),
                                   [&](const Option& option) { return option.name == entry.key; });
    if (!known) {
      return absl::InvalidArgumentError(absl::StrCat(label, ": key ", Quoted(entry.key),
                                                     ": unknown; expected an option of ", title_));
    }
    Given value{Source::kFile, absl::StrCat(label, " ", entry.key), entry.value};
    if (!found.emplace(entry.key, std::move(value)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(label, ": key ", Quoted(entry.key), ": given twice; expected once"));
    }
  }
  given->merge(found);  // what is there already is stronger
  return absl::OkStatus();
}

absl::Status Options::Resolve(GivenByName given) const {
  for (const auto& [a, b] : exclusions_) {
    const auto first = given.find(a);
    const auto second = given.find(b);
    if (first == given.end() || second == given.end()) continue;
    if (first->second.source == second->second.source) {
      return absl::InvalidArgumentError(absl::StrCat(first->second.label, " and ",
                                                     second->second.label,
                                                     ": both given; expected one of them"));
    }
    given.erase(first->second.source < second->second.source ? second : first);
  }
  for (const auto& [option, other] : needs_) {
    const auto found = given.find(option);
    if (found == given.end() || given.contains(other)) continue;
    if (found->second.source == Source::kFlag) {
      return absl::InvalidArgumentError(absl::StrCat(
          found->second.label, ": ", Quoted(found->second.text), "; expected only with --", other));
    }
    given.erase(found);  // for other commands
  }
  for (const Option& option : options_) {
    const auto found = given.find(option.name);
    if (found == given.end()) {
      if (!option.required) continue;
      return absl::InvalidArgumentError(absl::StrCat("--", option.name, ": none; expected ",
                                                     option.placeholder, ": ", option.help));
    }
    absl::Status status = option.set(found->second.text);
    for (const std::string& text : found->second.more) status.Update(option.set(text));
    if (!status.ok()) {
      absl::string_view refused = status.message();
      absl::ConsumePrefix(&refused, absl::StrCat(option.name, ": "));  // the label says it
      return absl::Status(status.code(), absl::StrCat(found->second.label, ": ", refused));
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
