// The text of a pattern under a cursor: blanks, words, numbers and argument lists, and the errors
// that name the place. What the parser and every word of the language (patterns/word.h) read with.
// Private to the pattern's implementation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/pattern_node.h"
#include "attention/selector.h"

namespace annulus {

// What one docs(…) says of the context.
struct DocsTotal {
  int64_t position = 0;  // in the text, 1 for the first character
  int64_t tokens = 0;    // the sum of its lengths
};

using Rules = std::vector<NodePtr>;  // by KV head

class PatternReader {
 public:
  // The most axes of a grid of tokens.
  static constexpr size_t kAxesMax = 3;
  // What a decimal is a multiple of 1 / this.
  static constexpr int64_t kDecimalParts = 1000000000;

  // An argument of a word: by position or by name.
  struct Argument {
    absl::string_view name = {};
    int64_t least = 0;
    bool required = false;
    size_t numbers_max = 1;  // joined by x, as the axes of a grid are
    bool decimal = false;    // above 0, at most 1, with a point
  };
  struct Value {
    absl::InlinedVector<int64_t, kAxesMax> numbers;
    size_t at = 0;
    bool given = false;

    int64_t number() const { return numbers.empty() ? 0 : numbers.front(); }
    // Of a decimal, whose number counts parts of kDecimalParts: the nearest f64, and the shortest
    // text.
    double decimal() const { return static_cast<double>(number()) / kDecimalParts; }
    std::string DecimalText() const;
  };

  PatternReader(absl::string_view text, int kv_heads) : text_(text), kv_heads_(kv_heads) {}
  virtual ~PatternReader() = default;
  PatternReader(const PatternReader&) = delete;
  PatternReader& operator=(const PatternReader&) = delete;

  int kv_heads() const { return kv_heads_; }
  Rules SameForAll(const NodePtr& node) const { return Rules(kv_heads_, node); }

  // A pattern that stands inside another one, up to what follows it.
  virtual absl::StatusOr<Rules> ReadPattern() = 0;
  // What the list of this name says, which the text names.
  virtual Rules RulesOfList(absl::string_view name) = 0;
  // What the list that the selector makes says; of a causal one up to each query.
  virtual absl::StatusOr<Rules> RulesOfSelector(std::shared_ptr<const Selector> selector) = 0;

  // "(", the arguments and ")". Each required one is given, each number is at least its least.
  absl::StatusOr<std::vector<Value>> ReadArguments(absl::Span<const Argument> arguments);
  // Arguments by position up to one that is none of theirs; the "(" comes first, "," last.
  absl::StatusOr<std::vector<Value>> ReadFirstArguments(absl::Span<const Argument> arguments);
  // "number, number, … )": at least one.
  absl::StatusOr<std::vector<Value>> ReadNumbers(absl::string_view what, int64_t least);
  absl::StatusOr<int64_t> ReadNumber(absl::string_view what, int64_t least);

  // INVALID_ARGUMENT beyond kPatternPartsMax parts; of rules about to be made for what begins at
  // `at`.
  absl::Status CountParts(size_t at, size_t more);

  // In the order of the text.
  void AddDocs(const DocsTotal& docs) { docs_.push_back(docs); }
  const std::vector<DocsTotal>& docs() const { return docs_; }

  size_t at() const { return at_; }
  bool AtEnd();
  bool Stands(char c) { return !AtEnd() && text_[at_] == c; }  // after blanks
  bool Accept(char c);
  absl::Status Expect(char c);
  void SkipBlanks();

  // What stands at the cursor: letters, digits and "_".
  absl::string_view Word();
  void Take(absl::string_view word) { at_ += word.size(); }

  absl::Status Refuse(size_t at, absl::string_view expected, absl::string_view found) const;
  // The cursor's word or character, escaped and cut, is what was found.
  absl::Status Expected(absl::string_view expected);

 private:
  absl::Status ReadArgument(absl::Span<const Argument> arguments, size_t place,
                            std::vector<Value>* values);
  absl::Status ReadValue(const Argument& argument, Value* value);
  absl::Status ReadDecimal(const Argument& argument, Value* value);

  const absl::string_view text_;
  const int kv_heads_;
  size_t at_ = 0;
  int64_t parts_ = 0;
  std::vector<DocsTotal> docs_;
  bool by_name_ = false;  // an argument of the list being read went by name
};

}  // namespace annulus
