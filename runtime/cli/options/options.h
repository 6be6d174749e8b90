// A command's options. Each may come from a flag (--kv-heads 4), the environment (ANNULUS_KV_HEADS)
// or the file of --config (kv-heads = 4, at the top or under [command]); the first of these that
// has it wins. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/quoted.h"

namespace annulus {

// The value of an environment variable, or nullptr.
using Environment = std::function<const char*(const std::string& name)>;

// Takes an option's text to where it belongs. INVALID_ARGUMENT says what the text is and what was
// expected; the option is named by the caller.
using OptionSetter = std::function<absl::Status(absl::string_view text)>;

// An unsigned integer with an optional K, M or G (2^10, 2^20, 2^30) within [low, high].
absl::StatusOr<int64_t> ParseCount(absl::string_view text, int64_t low, int64_t high);

OptionSetter SetText(std::string* value);
OptionSetter SetText(std::optional<std::string>* value);
// A finite number that is finite as float32 too.
OptionSetter SetFloat(std::optional<float>* value);

template <typename Int>  // int, int64_t, or an optional of them
OptionSetter SetCount(Int* value, int64_t low, int64_t high) {
  return [=](absl::string_view text) {
    absl::StatusOr<int64_t> count = ParseCount(text, low, high);
    if (count.ok()) *value = static_cast<Int>(*count);
    return count.status();
  };
}

// By a function from text to StatusOr.
template <typename Value, typename Parse>
OptionSetter SetParsed(Value* value, Parse parse) {
  return [=](absl::string_view text) {
    auto parsed = parse(text);
    if (parsed.ok()) *value = *std::move(parsed);
    return parsed.status();
  };
}

class Options {
 public:
  // Of a command of `program`, or of the program itself where command is "".
  Options(std::string command, std::string description, absl::string_view program = "annulus");

  // `placeholder` and `help` are for the help text.
  void Add(const std::string& name, const std::string& placeholder, const std::string& help,
           OptionSetter set);
  void AddRequired(const std::string& name, const std::string& placeholder, const std::string& help,
                   OptionSetter set);
  // An option whose flag may stand alone: then its value is `alone`.
  void AddOptional(const std::string& name, const std::string& placeholder, const std::string& help,
                   const std::string& alone, OptionSetter set);
  // An option that may be given several times as a flag, each with one value; `set` gets each.
  void AddRepeated(const std::string& name, const std::string& placeholder, const std::string& help,
                   OptionSetter set);
  void AddFlag(const std::string& name, const std::string& help, bool* value);
  // What stands without a flag: `set` gets the words with a blank between.
  void AddWords(const std::string& name, const std::string& placeholder, const std::string& help,
                OptionSetter set);

  // At most one of the two may be given; where both are, from different sources, the weaker
  // source's is as if not given.
  void Exclude(const std::string& a, const std::string& b) { exclusions_.emplace_back(a, b); }

  // The option says something only beside the other: its flag alone is refused. The environment and
  // files are shared by commands that have no use for all of them, and are as if not given then.
  void Need(const std::string& option, const std::string& other) {
    needs_.emplace_back(option, other);
  }

  // The help text if the arguments (without program and command) ask for it; nullopt once every
  // option is set. INVALID_ARGUMENT, one line: which option, from where, its value, what was
  // expected.
  absl::StatusOr<std::optional<std::string>> Parse(const std::vector<std::string>& args,
                                                   const Environment& environment) const;

 private:
  struct Option {
    std::string name;
    std::string placeholder;
    std::string help;
    OptionSetter set;
    bool required = false;
    bool is_flag = false;
    std::string alone = {};  // the value of its flag without one; empty: there must be one
    bool is_words = false;   // without a flag
    bool is_repeated = false;
  };
  enum class Source { kFlag, kEnvironment, kFile };  // from strong to weak
  struct Given {
    Source source = Source::kFlag;
    std::string label;  // "--tokens", "ANNULUS_TOKENS", "file \"a.conf\" tokens"
    std::string text;
    std::vector<std::string> more = {};  // of a repeated flag, after the first
  };
  using GivenByName = std::map<std::string, Given>;

  // What the flags give, or the help text.
  absl::StatusOr<std::optional<std::string>> ReadFlags(const std::vector<std::string>& args,
                                                       GivenByName* given) const;
  void ReadEnvironment(const Environment& environment, GivenByName* given) const;
  absl::Status ReadFile(const std::string& path, GivenByName* given) const;
  absl::Status Resolve(GivenByName given) const;

  const std::string command_;
  const std::string title_;  // program and command
  const std::string description_;
  std::vector<Option> options_;
  std::vector<std::pair<std::string, std::string>> exclusions_;
  std::vector<std::pair<std::string, std::string>> needs_;  // what, and beside what
};

}  // namespace annulus
