// What lists make of a pattern.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attention/has_list.h"
#include "attention/pattern.h"
#include "attention/pattern_node.h"
#include "attention/pattern_parser.h"
#include "attention/selector.h"
#include "base/status.h"

namespace annulus {
namespace {

// What some query head of the KV head sees.
NodePtr AnyOf(std::vector<NodePtr> rules) {
  std::vector<NodePtr> distinct;
  for (NodePtr& rule : rules) {
    const auto same = [&rule](const NodePtr& other) { return other->Equals(*rule); };
    if (std::none_of(distinct.begin(), distinct.end(), same)) distinct.push_back(std::move(rule));
  }
  return MakeUnion(std::move(distinct));
}

}  // namespace

absl::StatusOr<Pattern> Pattern::Bind(absl::Span<const NamedList> lists, int heads) const {
  bool by_query_head = false;
  for (size_t i = 0; i < lists.size(); ++i) {
    const NamedList& list = lists[i];
    if (!std::binary_search(list_names_.begin(), list_names_.end(), list.name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "lists: ", list.name, "; expected a name in a list(name) of the pattern",
          list_names_.empty() ? ", which has none" : ": ", absl::StrJoin(list_names_, ", ")));
    }
    if (HasList(lists.subspan(0, i), list.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("lists: ", list.name, " again; expected each list once"));
    }
    const int of_list = list.list->heads();
    if (of_list != 1 && of_list != kv_heads_ && of_list != heads) {
      return absl::InvalidArgumentError(absl::StrCat("list ", list.name, ": heads: ", of_list,
                                                     "; expected 1, ", kv_heads_, " (KV heads) or ",
                                                     heads, " (query heads)"));
    }
    by_query_head |= of_list != 1 && of_list != kv_heads_;
  }
  Pattern bound = *this;
  bound.lists_.assign(lists.begin(), lists.end());
  ListsOfText of_text{bound.lists_, heads / kv_heads_, 0};
  bound.id_ = NextId();
  if (!by_query_head) {
    ANNULUS_ASSIGN_OR_RETURN(ParsedPattern parsed, ParsePattern(text_, kv_heads_, of_text));
    bound.SetRules(std::move(parsed.rules));
    return bound;
  }
  std::vector<Pattern> members;
  std::vector<std::vector<NodePtr>> by_head(static_cast<size_t>(kv_heads_));
  for (; of_text.member < of_text.group; ++of_text.member) {
    ANNULUS_ASSIGN_OR_RETURN(ParsedPattern parsed, ParsePattern(text_, kv_heads_, of_text));
    members.push_back(bound);
    members.back().SetRules(std::move(parsed.rules));
    for (size_t head = 0; head < by_head.size(); ++head) {
      by_head[head].push_back(members.back().rules_[head]);
    }
  }
  std::vector<NodePtr> rules;
  for (std::vector<NodePtr>& of_head : by_head) rules.push_back(AnyOf(std::move(of_head)));
  bound.SetRules(std::move(rules));
  bound.members_ = std::make_shared<const std::vector<Pattern>>(std::move(members));
  return bound;
}

absl::Status Pattern::CheckLists(TokenRange q, int64_t kv_tokens) const {
  for (const std::string& name : list_names_) {
    if (HasList(lists_, name)) continue;
    for (const auto& selector : selectors_) {
      if (selector->name() != name) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "pattern: ", name, " chooses keys by data; expected a call that has them, or its list"));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("lists: no list ", name, "; expected one: the pattern has list(", name, ")"));
  }
  for (const NamedList& list : lists_) {
    ANNULUS_RETURN_IF_ERROR(list.list->Check(list.name, q, kv_tokens));
  }
  return absl::OkStatus();
}

}  // namespace annulus
