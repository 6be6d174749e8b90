#include "attention/pattern_parser.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "attention/pattern.h"
#include "attention/pattern_text.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int kDepthMax = 64;
constexpr int kPrimitivesMax = 4096;

using Rules = std::vector<NodePtr>;  // by KV head

struct Argument {
  absl::string_view name;
  int64_t least;
  bool required;
};

struct Value {
  int64_t number = 0;
  size_t at = 0;
  bool given = false;
};

class Parser : private PatternText {
 public:
  Parser(absl::string_view text, int kv_heads, const ListsOfText& lists)
      : PatternText(text), kv_heads_(kv_heads), lists_(lists) {}

  absl::StatusOr<ParsedPattern> Parse() {
    ANNULUS_ASSIGN_OR_RETURN(parsed_.rules, ParseUnion());
    if (!AtEnd()) return Expected("\"|\", \"&\" or the end of the text");
    return std::move(parsed_);
  }

 private:
  absl::StatusOr<Rules> ParseUnion() { return ParseList('|', &Parser::ParseIntersection); }
  absl::StatusOr<Rules> ParseIntersection() { return ParseList('&', &Parser::ParseOne); }
  absl::StatusOr<Rules> ParseList(char separator, absl::StatusOr<Rules> (Parser::*part)());
  absl::StatusOr<Rules> ParseOne();
  absl::StatusOr<Rules> ParseNested();
  absl::StatusOr<Rules> ParseHeads();
  absl::StatusOr<Rules> ParseDocs();
  absl::StatusOr<Rules> ParseS2();
  absl::StatusOr<Rules> ParseListed();
  absl::StatusOr<std::vector<Value>> ParseArguments(absl::Span<const Argument> arguments);
  absl::Status ParseArgument(absl::Span<const Argument> arguments, size_t place,
                             std::vector<Value>* values);
  absl::StatusOr<int> ParseHead();

  // Of rules about to be made for what begins at `at`.
  absl::Status CountParts(size_t at, size_t more) {
    parts_ += static_cast<int64_t>(more);
    if (parts_ <= kPatternPartsMax) return absl::OkStatus();
    return Refuse(at,
                  absl::StrCat("at most ", kPatternPartsMax, " parts over all KV heads ",
                               "(pattern_parts_max)"),
                  "more");
  }

  Rules SameForAll(NodePtr node) const { return Rules(kv_heads_, node); }

  const int kv_heads_;
  const ListsOfText& lists_;
  int depth_ = 0;
  int primitives_ = 0;
  int64_t parts_ = 0;
  bool by_name_ = false;  // an argument of the list being read went by name
  ParsedPattern parsed_;
};

absl::StatusOr<Rules> Parser::ParseList(char separator, absl::StatusOr<Rules> (Parser::*part)()) {
  SkipBlanks();
  const size_t begin = at_;
  std::vector<Rules> parts;
  do {
    ANNULUS_ASSIGN_OR_RETURN(Rules rules, (this->*part)());
    parts.push_back(std::move(rules));
  } while (Accept(separator));
  if (parts.size() == 1) return std::move(parts.front());
  Rules all;
  for (int head = 0; head < kv_heads_; ++head) {
    const auto as_before = [head](const Rules& rules) { return rules[head] == rules[head - 1]; };
    if (head > 0 && std::all_of(parts.begin(), parts.end(), as_before)) {
      all.push_back(all.back());
      continue;
    }
    std::vector<NodePtr> nodes;
    for (const Rules& rules : parts) nodes.push_back(rules[head]);
    ANNULUS_RETURN_IF_ERROR(CountParts(begin, nodes.size()));
    all.push_back(separator == '|' ? MakeUnion(std::move(nodes))
                                   : MakeIntersection(std::move(nodes)));
    const int64_t terms = all.back()->size().shapes();
    if (terms > kPatternTermsMax) {
      return Refuse(
          begin,
          absl::StrCat("at most ", kPatternTermsMax, " terms after expansion (pattern_terms_max)"),
          absl::StrCat(terms));
    }
  }
  return all;
}

absl::StatusOr<Rules> Parser::ParseOne() {
  constexpr char kPrimitives[] =
      "full, causal, window, sink, docs, s2, power, list, heads or \"(\"";
  if (Accept('(')) {
    --at_;
    return ParseNested();
  }
  const absl::string_view name = Word();
  if (name != "heads" && ++primitives_ > kPrimitivesMax) {
    return Refuse(at_, absl::StrCat("at most ", kPrimitivesMax, " primitives"), "more");
  }
  const auto take = [this, name] { at_ += name.size(); };
  if (name == "full") return take(), SameForAll(MakeBand(-kFar, kFar));
  if (name == "causal") return take(), SameForAll(MakeBand(0, kFar));
  if (name == "heads") return take(), ParseHeads();
  if (name == "docs") return take(), ParseDocs();
  if (name == "s2") return take(), ParseS2();
  if (name == "list") return take(), ParseListed();
  if (name == "window") {
    take();
    ANNULUS_ASSIGN_OR_RETURN(const std::vector<Value> values,
                             ParseArguments({{"left", 0, true}, {"right", 0, false}}));
    return SameForAll(MakeBand(-values[1].number, values[0].number - 1));
  }
  if (name == "sink") {
    take();
    ANNULUS_ASSIGN_OR_RETURN(const std::vector<Value> values, ParseArguments({{"n", 0, true}}));
    return SameForAll(MakeSink(values[0].number));
  }
  if (name == "power") {
    take();
    ANNULUS_ASSIGN_OR_RETURN(
        const std::vector<Value> values,
        ParseArguments({{"block", 1, true}, {"window", 0, true}, {"sink", 0, true}}));
    return SameForAll(MakePower(values[0].number, values[1].number, values[2].number));
  }
  return Expected(kPrimitives);
}

absl::StatusOr<Rules> Parser::ParseNested() {
  if (++depth_ > kDepthMax) {
    return Expected(absl::StrCat("at most ", kDepthMax, " levels of nesting"));
  }
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  ANNULUS_ASSIGN_OR_RETURN(Rules rules, ParseUnion());
  if (!Accept(')')) return Expected("\"|\", \"&\" or \")\"");
  --depth_;
  return rules;
}

absl::StatusOr<Rules> Parser::ParseHeads() {
  if (++depth_ > kDepthMax) {
    return Expected(absl::StrCat("at most ", kDepthMax, " levels of nesting"));
  }
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  Rules all(kv_heads_);
  do {
    SkipBlanks();
    const size_t begin = at_;
    ANNULUS_ASSIGN_OR_RETURN(const int first, ParseHead());
    int last = first;
    if (Accept('-')) {
      SkipBlanks();
      const size_t last_at = at_;
      ANNULUS_ASSIGN_OR_RETURN(last, ParseHead());
      if (last < first) {
        return Refuse(last_at, absl::StrCat("a KV head from ", first, " on"), absl::StrCat(last));
      }
    }
    for (int head = first; head <= last; ++head) {
      if (all[head] != nullptr) {
        return Refuse(begin, "each KV head once in heads", absl::StrCat("head ", head, " again"));
      }
    }
    ANNULUS_RETURN_IF_ERROR(Expect(':'));
    ANNULUS_ASSIGN_OR_RETURN(const Rules rules, ParseUnion());
    std::copy(rules.begin() + first, rules.begin() + last + 1, all.begin() + first);
  } while (Accept(';'));
  for (int head = 0; head < kv_heads_; ++head) {
    if (all[head] == nullptr) {
      return Expected(absl::StrCat("\";\" and a rule for KV head ", head, " of ", kv_heads_));
    }
  }
  if (!Accept(')')) return Expected("\"|\", \"&\", \";\" or \")\"");
  --depth_;
  return all;
}

absl::StatusOr<int> Parser::ParseHead() {
  SkipBlanks();
  const size_t begin = at_;
  ANNULUS_ASSIGN_OR_RETURN(const int64_t head, ParseNumber("a KV head", 0));
  if (head >= kv_heads_) {
    return Refuse(begin, absl::StrCat("a KV head below ", kv_heads_), absl::StrCat(head));
  }
  return static_cast<int>(head);
}

absl::StatusOr<Rules> Parser::ParseDocs() {
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  DocsTotal total;
  SkipBlanks();
  total.position = static_cast<int64_t>(at_) + 1;
  std::vector<int64_t> lengths;
  do {
    SkipBlanks();
    const size_t begin = at_;
    ANNULUS_ASSIGN_OR_RETURN(const int64_t length, ParseNumber("a document's length", 1));
    if (length > kFar - total.tokens) {
      return Refuse(begin, "document lengths of at most 2^60 tokens in all", "more");
    }
    lengths.push_back(length);
    total.last_start = total.tokens;
    total.tokens += length;
  } while (Accept(','));
  if (!Accept(')')) return Expected("\",\" or \")\"");
  parsed_.docs.push_back(total);
  return SameForAll(MakeDocs(lengths));
}

absl::StatusOr<Rules> Parser::ParseS2() {
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<Value> values,
                           ParseArguments({{"block", 1, true},
                                           {"local", 1, true},
                                           {"stride", 1, true},
                                           {"dense_heads", 0, false},
                                           {"step", 0, false},
                                           {"offset", 0, false}}));
  const int64_t block = values[0].number;
  const int64_t stride = values[2].number;
  const int64_t dense_heads = values[3].number;
  if (stride > kFar / block) {
    return Refuse(values[2].at, "block·stride of at most 2^60 tokens", "more");
  }
  if (dense_heads > kv_heads_) {
    return Refuse(values[3].at, absl::StrCat("dense_heads of at most ", kv_heads_, " KV heads"),
                  absl::StrCat(dense_heads));
  }
  ANNULUS_RETURN_IF_ERROR(CountParts(values[0].at, static_cast<size_t>(kv_heads_)));
  const int64_t step =
      values[4].given ? values[4].number : std::max<int64_t>(1, stride / kv_heads_);
  Rules rules;
  for (int64_t head = 0; head < kv_heads_; ++head) {
    const __int128 shift = static_cast<__int128>(head) * step + values[5].number;
    const int64_t residue = (stride - static_cast<int64_t>(shift % stride)) % stride;
    rules.push_back(head < kv_heads_ - dense_heads
                        ? MakeS2(block, values[1].number, stride, residue)
                        : MakeBand(0, kFar));
  }
  return rules;
}

absl::StatusOr<Rules> Parser::ParseListed() {
  constexpr size_t kNameBytesMax = 64;
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  const absl::string_view name = Word();
  if (name.empty() || absl::ascii_isdigit(name[0]) || name.size() > kNameBytesMax) {
    return Expected("the name of a list: letters, digits and _, the first no digit, 64 at most");
  }
  at_ += name.size();
  if (!Accept(')')) return Expected("\")\"");
  std::vector<std::string>& names = parsed_.list_names;
  const auto place = std::lower_bound(names.begin(), names.end(), name);
  if (place == names.end() || *place != name) names.insert(place, std::string(name));
  const auto named = [name](const NamedList& list) { return list.name == name; };
  const auto found = std::find_if(lists_.lists.begin(), lists_.lists.end(), named);
  if (found == lists_.lists.end()) return SameForAll(MakeListed(nullptr, 0));
  if (found->list->heads() == 1) return SameForAll(MakeListed(found->list, 0));
  Rules rules;
  for (int head = 0; head < kv_heads_; ++head) {
    const bool by_kv_head = found->list->heads() == kv_heads_;
    rules.push_back(
        MakeListed(found->list, by_kv_head ? head : head * lists_.group + lists_.member));
  }
  return rules;
}

absl::StatusOr<std::vector<Value>> Parser::ParseArguments(absl::Span<const Argument> arguments) {
  std::vector<Value> values(arguments.size());
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  size_t place = 0;
  by_name_ = false;
  do {
    ANNULUS_RETURN_IF_ERROR(ParseArgument(arguments, place++, &values));
  } while (Accept(','));
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].required && !values[i].given) {
      return Expected(absl::StrCat("\",\" and ", arguments[i].name));
    }
  }
  if (!Accept(')')) return Expected("\",\" or \")\"");
  return values;
}

// The argument in `place`: by name, or by position if all before it went by position.
absl::Status Parser::ParseArgument(absl::Span<const Argument> arguments, size_t place,
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
    at_ += word.size();
    ANNULUS_RETURN_IF_ERROR(Expect('='));
    by_name_ = true;
  } else if (by_name_) {
    return Expected("name=number after an argument by name");
  } else if (place == arguments.size()) {
    return Expected(absl::StrCat("at most ", arguments.size(), " arguments"));
  }
  SkipBlanks();
  Value& value = (*values)[index];
  value.at = at_;
  ANNULUS_ASSIGN_OR_RETURN(value.number,
                           ParseNumber(arguments[index].name, arguments[index].least));
  value.given = true;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedPattern> ParsePattern(absl::string_view text, int kv_heads,
                                           const ListsOfText& lists) {
  if (kv_heads < 1 || kv_heads > kKvHeadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_heads: expected 1 to ", kKvHeadsMax, ", found ", kv_heads));
  }
  if (text.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("pattern: at ", kPatternBytesMax + 1,
                                                   ": expected at most ", kPatternBytesMax,
                                                   " bytes, found ", text.size()));
  }
  return Parser(text, kv_heads, lists).Parse();
}

}  // namespace annulus
