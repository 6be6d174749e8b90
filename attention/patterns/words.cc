#include <algorithm>
#include <vector>

#include "attention/patterns/word.h"

namespace annulus {

absl::Span<const PatternWord> PatternWords() {
  static const std::vector<PatternWord>* const words = [] {
    auto* all = new std::vector<PatternWord>;
    for (const auto some :
         {BasicWords(),      DocsWords(),          BlockWords(), S2Words(),   RelativeS2Words(),
          PowerWords(),      NeighbourhoodWords(), GridWords(),  DiskWords(), PermuteWords(),
          ListWords(),       QuestWords(),         MobaWords(),  NsaWords(),  XAttentionWords(),
          BiFormerWords(),   DsaWords(),           MsaWords(),   SeerWords(), MInferenceWords(),
          FlexPrefillWords()}) {
      all->insert(all->end(), some.begin(), some.end());
    }
    return all;
  }();
  return *words;
}

const PatternWord* FindPatternWord(absl::string_view name) {
  const auto words = PatternWords();
  const auto at = std::find_if(words.begin(), words.end(),
                               [name](const PatternWord& word) { return word.name == name; });
  return at == words.end() ? nullptr : &*at;
}

}  // namespace annulus
