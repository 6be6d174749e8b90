// What the words of selectors check alike.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "attention/block_set.h"
#include "attention/key_list.h"
#include "attention/pattern_reader.h"

namespace annulus {

// A unit lies within one block of storage, or consists of whole ones.
inline absl::Status CheckUnit(const PatternReader& reader, const PatternReader::Value& value) {
  const int64_t tokens = value.number();
  const bool nests = kBlockTokens % tokens == 0 || tokens % kBlockTokens == 0;
  if (nests && tokens <= kListBlockTokensMax) return absl::OkStatus();
  return reader.Refuse(value.at,
                       absl::StrCat("a divisor of ", kBlockTokens, " or a multiple of it up to ",
                                    kListBlockTokensMax),
                       absl::StrCat(tokens));
}

inline absl::Status CheckPicks(const PatternReader& reader, const PatternReader::Value& value) {
  if (value.number() <= kListKeysMax) return absl::OkStatus();
  return reader.Refuse(value.at, absl::StrCat("at most list_keys_max, ", kListKeysMax),
                       absl::StrCat(value.number()));
}

}  // namespace annulus
