// The pattern language's parser: text to one rule per KV head. Private to the pattern's
// implementation; a pure function.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/pattern_node.h"
#include "attention/pattern_reader.h"

namespace annulus {

struct ParsedPattern {
  std::vector<NodePtr> rules;           // by KV head
  std::vector<DocsTotal> docs;          // in the order of the text
  std::vector<std::string> list_names;  // that the text names, ascending, each once
  std::vector<std::shared_ptr<const Selector>> selectors;  // by name, each once
};

// What list(name) in a text stands for: a name without a list sees nothing.
struct ListsOfText {
  absl::Span<const NamedList> lists;
  int group = 1;   // query heads of a KV head
  int member = 0;  // which of them is asked for, where a list differs by query head
};

// See Pattern::Parse and Pattern::Bind.
absl::StatusOr<ParsedPattern> ParsePattern(absl::string_view text, int kv_heads,
                                           const ListsOfText& lists = {});

}  // namespace annulus
