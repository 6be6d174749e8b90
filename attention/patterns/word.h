// The words of the pattern language: each is a file here (its definition, its arguments and their
// defaults, its source) and one line in the table. The parser (../pattern_parser.cc) knows lists,
// brackets and heads, and finds everything else here. Private to the pattern's implementation.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/pattern_reader.h"

namespace annulus {

struct PatternWord {
  absl::string_view name;
  absl::string_view form;     // with its arguments
  absl::string_view meaning;  // which keys a query sees
  absl::string_view source;   // arXiv number and section; empty where nobody claims it
  absl::string_view example;  // as a method's (../methods.h); empty where data decides
  // Reads the arguments; the cursor stands behind the name.
  absl::StatusOr<Rules> (*read)(PatternReader& reader);
};

// All of them, in the order that people read them.
absl::Span<const PatternWord> PatternWords();

// Null where there is no such word.
const PatternWord* FindPatternWord(absl::string_view name);

absl::Span<const PatternWord> BasicWords();
absl::Span<const PatternWord> DocsWords();
absl::Span<const PatternWord> BlockWords();
absl::Span<const PatternWord> S2Words();
absl::Span<const PatternWord> RelativeS2Words();
absl::Span<const PatternWord> PowerWords();
absl::Span<const PatternWord> NeighbourhoodWords();
absl::Span<const PatternWord> GridWords();
absl::Span<const PatternWord> DiskWords();
absl::Span<const PatternWord> PermuteWords();
absl::Span<const PatternWord> ListWords();
absl::Span<const PatternWord> QuestWords();  // ../select/, as all whose keys are chosen by data
absl::Span<const PatternWord> MobaWords();
absl::Span<const PatternWord> NsaWords();
absl::Span<const PatternWord> XAttentionWords();
absl::Span<const PatternWord> BiFormerWords();
absl::Span<const PatternWord> DsaWords();
absl::Span<const PatternWord> MsaWords();
absl::Span<const PatternWord> SeerWords();
absl::Span<const PatternWord> MInferenceWords();
absl::Span<const PatternWord> FlexPrefillWords();

}  // namespace annulus
