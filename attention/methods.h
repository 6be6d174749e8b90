// The attention methods of the literature that Annulus computes, each with how it is asked for.
// `annulus methods` prints the table. Plain values.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace annulus {

struct Method {
  absl::string_view name;
  absl::string_view form;     // the pattern, with its parameters as letters
  absl::string_view meaning;  // one line
  absl::string_view source;   // arXiv number and section
  absl::string_view
      example;  // for kMethodTokens tokens and kMethodKvHeads KV heads; empty where data decides
};

// What the examples of methods and of the language's words are for.
inline constexpr int kMethodTokens = 64;
inline constexpr int kMethodKvHeads = 4;

absl::Span<const Method> Methods();

}  // namespace annulus
