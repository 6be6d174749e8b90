#include "attention/pattern_parser.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int kDepthMax = 64;
constexpr int kPrimitivesMax = 4096;

class Parser final : public PatternReader {
 public:
  Parser(absl::string_view text, int kv_heads, const ListsOfText& lists)
      : PatternReader(text, kv_heads), lists_(lists) {}

  absl::StatusOr<ParsedPattern> Parse() {
    ParsedPattern parsed;
    ANNULUS_ASSIGN_OR_RETURN(parsed.rules, ParseUnion());
    if (!AtEnd()) return Expected("\"|\", \"&\" or the end of the text");
    if (list_names_.size() > kPatternListsMax) {
      return Refuse(0,
                    absl::StrCat("at most ", kPatternListsMax,
                                 " lists and words that choose keys (pattern_lists_max)"),
                    absl::StrCat(list_names_.size()));
    }
    parsed.docs = docs();
    parsed.list_names = std::move(list_names_);
    for (auto& [name, selector] : selectors_) parsed.selectors.push_back(std::move(selector));
    return parsed;
  }

  absl::StatusOr<Rules> ReadPattern() override;
  Rules RulesOfList(absl::string_view name) override;
  absl::StatusOr<Rules> RulesOfSelector(std::shared_ptr<const Selector> selector) override;

 private:
  absl::StatusOr<Rules> ParseUnion() { return ParseList('|', &Parser::ParseIntersection); }
  absl::StatusOr<Rules> ParseIntersection() { return ParseList('&', &Parser::ParseOne); }
  absl::StatusOr<Rules> ParseList(char separator, absl::StatusOr<Rules> (Parser::*part)());
  absl::StatusOr<Rules> ParseOne();
  absl::StatusOr<Rules> ParseWord();
  absl::StatusOr<Rules> ParseNested();
  absl::StatusOr<Rules> ParseHeads();
  absl::StatusOr<int> ParseHead();
  absl::Status GoDeeper();
  absl::Status CheckTerms(size_t at, const PatternNode& rule) const;

  const ListsOfText& lists_;
  std::vector<std::string> list_names_;  // ascending, each once
  std::map<std::string, std::shared_ptr<const Selector>> selectors_;
  int depth_ = 0;
  int within_words_ = 0;  // whose arguments are patterns
  int primitives_ = 0;
};

absl::Status Parser::GoDeeper() {
  if (++depth_ <= kDepthMax) return absl::OkStatus();
  return Expected(absl::StrCat("at most ", kDepthMax, " levels of nesting"));
}

absl::StatusOr<Rules> Parser::ReadPattern() {
  ANNULUS_RETURN_IF_ERROR(GoDeeper());
  ++within_words_;
  ANNULUS_ASSIGN_OR_RETURN(Rules rules, ParseUnion());
  --within_words_;
  --depth_;
  return rules;
}

Rules Parser::RulesOfList(absl::string_view name) {
  const auto place = std::lower_bound(list_names_.begin(), list_names_.end(), name);
  if (place == list_names_.end() || *place != name) list_names_.insert(place, std::string(name));
  const auto named = [name](const NamedList& list) { return list.name == name; };
  const auto found = std::find_if(lists_.lists.begin(), lists_.lists.end(), named);
  if (found == lists_.lists.end()) return SameForAll(MakeListed(nullptr, 0));
  if (found->list->heads() == 1) return SameForAll(MakeListed(found->list, 0));
  Rules rules;
  for (int head = 0; head < kv_heads(); ++head) {
    const bool by_kv_head = found->list->heads() == kv_heads();
    rules.push_back(
        MakeListed(found->list, by_kv_head ? head : head * lists_.group + lists_.member));
  }
  return rules;
}

absl::StatusOr<Rules> Parser::RulesOfSelector(std::shared_ptr<const Selector> selector) {
  const std::string& name = selector->name();
  if (within_words_ > 0) {
    // Such a word moves positions, and the keys are chosen where they are.
    return Refuse(at(), "no word that chooses keys by data within another word", name);
  }
  selectors_.emplace(name, selector);
  Rules rules = RulesOfList(name);
  if (!selector->causal()) return rules;
  const NodePtr causal = MakeBand(0, kFar);
  const PatternNode* listed = nullptr;
  for (NodePtr& rule : rules) {
    if (rule.get() == listed) {
      rule = (&rule)[-1];
      continue;
    }
    listed = rule.get();
    ANNULUS_RETURN_IF_ERROR(CountParts(at(), 2));
    rule = MakeIntersection({std::move(rule), causal});
  }
  return rules;
}

absl::Status Parser::CheckTerms(size_t at, const PatternNode& rule) const {
  const int64_t terms = rule.size().shapes();
  if (terms <= kPatternTermsMax) return absl::OkStatus();
  return Refuse(
      at, absl::StrCat("at most ", kPatternTermsMax, " terms after expansion (pattern_terms_max)"),
      absl::StrCat(terms));
}

absl::StatusOr<Rules> Parser::ParseList(char separator, absl::StatusOr<Rules> (Parser::*part)()) {
  SkipBlanks();
  const size_t begin = at();
  std::vector<Rules> parts;
  do {
    ANNULUS_ASSIGN_OR_RETURN(Rules rules, (this->*part)());
    parts.push_back(std::move(rules));
  } while (Accept(separator));
  if (parts.size() == 1) return std::move(parts.front());
  Rules all;
  for (int head = 0; head < kv_heads(); ++head) {
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
    ANNULUS_RETURN_IF_ERROR(CheckTerms(begin, *all.back()));
  }
  return all;
}

absl::StatusOr<Rules> Parser::ParseOne() {
  return Stands('(') ? ParseNested() : ParseWord();
}

absl::StatusOr<Rules> Parser::ParseNested() {
  ANNULUS_RETURN_IF_ERROR(GoDeeper());
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  ANNULUS_ASSIGN_OR_RETURN(Rules rules, ParseUnion());
  --depth_;
  if (!Accept(')')) return Expected("\"|\", \"&\" or \")\"");
  return rules;
}

absl::StatusOr<Rules> Parser::ParseWord() {
  const absl::string_view name = Word();
  if (name == "heads") {
    Take(name);
    return ParseHeads();
  }
  const PatternWord* const word = FindPatternWord(name);
  if (word == nullptr) {
    std::string known;
    for (const PatternWord& one : PatternWords()) absl::StrAppend(&known, one.name, ", ");
    return Expected(absl::StrCat(known, "heads or \"(\""));
  }
  const size_t begin = at();
  if (++primitives_ > kPrimitivesMax) {
    return Refuse(begin, absl::StrCat("at most ", kPrimitivesMax, " primitives"), "more");
  }
  Take(name);
  ANNULUS_ASSIGN_OR_RETURN(Rules rules, word->read(*this));
  const PatternNode* checked = nullptr;
  for (const NodePtr& rule : rules) {
    if (rule.get() != checked) ANNULUS_RETURN_IF_ERROR(CheckTerms(begin, *rule));
    checked = rule.get();
  }
  return rules;
}

absl::StatusOr<Rules> Parser::ParseHeads() {
  ANNULUS_RETURN_IF_ERROR(GoDeeper());
  ANNULUS_RETURN_IF_ERROR(Expect('('));
  Rules all(kv_heads());
  do {
    SkipBlanks();
    const size_t begin = at();
    ANNULUS_ASSIGN_OR_RETURN(const int first, ParseHead());
    int last = first;
    if (Accept('-')) {
      SkipBlanks();
      const size_t last_at = at();
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
  for (int head = 0; head < kv_heads(); ++head) {
    if (all[head] == nullptr) {
      return Expected(absl::StrCat("\";\" and a rule for KV head ", head, " of ", kv_heads()));
    }
  }
  if (!Accept(')')) return Expected("\"|\", \"&\", \";\" or \")\"");
  --depth_;
  return all;
}

absl::StatusOr<int> Parser::ParseHead() {
  SkipBlanks();
  const size_t begin = at();
  ANNULUS_ASSIGN_OR_RETURN(const int64_t head, ReadNumber("a KV head", 0));
  if (head >= kv_heads()) {
    return Refuse(begin, absl::StrCat("a KV head below ", kv_heads()), absl::StrCat(head));
  }
  return static_cast<int>(head);
}

}  // namespace

absl::StatusOr<ParsedPattern> ParsePattern(absl::string_view text, int kv_heads,
                                           const ListsOfText& lists) {
  if (kv_heads < 1 || kv_heads > kKvHeadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_heads: ", kv_heads, "; expected 1 to ", kKvHeadsMax));
  }
  if (text.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("pattern: at ", kPatternBytesMax + 1, ": ",
                                                   text.size(), " bytes; expected at most ",
                                                   kPatternBytesMax));
  }
  return Parser(text, kv_heads, lists).Parse();
}

}  // namespace annulus
