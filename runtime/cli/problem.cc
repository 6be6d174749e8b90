#include "runtime/cli/problem.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/has_list.h"
#include "attention/selector.h"
#include "attention/stand_in.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/context/layout.h"
#include "runtime/engine/select_local.h"

namespace annulus {
namespace {

absl::Status CheckPositions(const ProblemFlags& flags) {
  if (!flags.q_start.has_value() && (flags.q_tokens < 1 || flags.q_tokens > flags.kv_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("q: ", flags.q_tokens, " tokens; expected 1 to the ", flags.kv_tokens,
                     " of k: queries are the context's last without --q-start"));
  }
  if (flags.q_tokens < 1 || flags.q_tokens > kContextTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("q: ", flags.q_tokens, " tokens; expected 1 to ", kContextTokensMax));
  }
  const int64_t start_max = kContextTokensMax - flags.q_tokens;
  if (flags.q_start.has_value() && (*flags.q_start < 0 || *flags.q_start > start_max)) {
    return absl::InvalidArgumentError(absl::StrCat("q_start: ", *flags.q_start, "; expected 0 to ",
                                                   start_max, " with ", flags.q_tokens,
                                                   " queries"));
  }
  if (flags.keys.has_value() &&
      (flags.keys->begin < 0 || flags.keys->size() < 1 || flags.keys->end > flags.kv_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "keys: ", flags.keys->begin, ":", flags.keys->end,
        "; expected A:B with 0 <= A < B <= ", flags.kv_tokens, ", the context's tokens"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenRange> ParseKeys(absl::string_view text) {
  const std::vector<absl::string_view> ends = absl::StrSplit(text, ':');
  if (ends.size() == 2) {
    const absl::StatusOr<int64_t> begin = ParseCount(ends[0], 0, kContextTokensMax);
    const absl::StatusOr<int64_t> end = ParseCount(ends[1], 0, kContextTokensMax);
    if (begin.ok() && end.ok()) return TokenRange{*begin, *end};
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(text), "; expected A:B, two counts of tokens"));
}

// The limits of the service hold here too, so that what one accepts the other does.
absl::Status CheckShape(const ProblemFlags& flags) {
  for (const auto& [name, value] : {std::pair("heads", flags.heads),
                                    {"kv_heads", flags.kv_heads},
                                    {"head_dim", flags.head_dim},
                                    {"v_head_dim", flags.v_head_dim}}) {
    if (value >= 1 && value <= INT32_MAX) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", value, "; expected 1 to ", INT32_MAX));
  }
  ContextSpec spec;
  spec.heads = static_cast<int>(flags.heads);
  spec.kv_heads = static_cast<int>(flags.kv_heads);
  spec.head_dim = static_cast<int>(flags.head_dim);
  spec.v_head_dim = static_cast<int>(flags.v_head_dim);
  spec.v_is_k_prefix = flags.v_is_k_prefix;
  spec.dtype = flags.dtype;
  spec.partition = flags.placement;
  spec.tokens_expected = flags.kv_tokens;
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(spec));
  ANNULUS_RETURN_IF_ERROR(CheckPositions(flags));
  // So that no count of pairs or bytes overflows.
  const __int128 pairs = __int128{flags.heads} * flags.q_tokens * flags.kv_tokens;
  const __int128 bytes = __int128{flags.workers} * flags.kv_tokens * flags.heads *
                         (flags.head_dim + flags.v_head_dim + 1) * 8;
  if (pairs > INT64_MAX || bytes > INT64_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "problem: ", flags.q_tokens, " x ", flags.kv_tokens, " tokens, ", flags.heads,
        " heads and ", flags.workers, " workers; expected fewer than 2^63 pairs and bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

void AddPositions(Options* options, ProblemFlags* problem) {
  options->Add("q-start", "N", "position of the first query (queries are the context's last)",
               SetCount(&problem->q_start, 0, kContextTokensMax));
  options->Add("keys", "A:B", "only the tokens from A to before B are seen (all)",
               SetParsed(&problem->keys, ParseKeys));
}

void AddLists(Options* options, ProblemFlags* problem) {
  options->AddRepeated("list", "NAME=FILE",
                       "what list(NAME) in the pattern shows: F.npy, a bool mask [heads, nb, nb] "
                       "of 64-token blocks (F.npy:BLOCK for others), or F.safetensors with begin "
                       "and keys; may be given again",
                       [problem](absl::string_view text) -> absl::Status {
                         ANNULUS_ASSIGN_OR_RETURN(ListFile file, ParseListFile(text));
                         problem->list_files.push_back(std::move(file));
                         return absl::OkStatus();
                       });
}

absl::Status ReadLists(ProblemFlags* problem) {
  const int64_t q_begin = problem->q_start.value_or(problem->kv_tokens - problem->q_tokens);
  const ListedCall call{{q_begin, q_begin + problem->q_tokens},
                        problem->kv_tokens,
                        problem->heads,
                        problem->kv_heads};
  for (const ListFile& file : problem->list_files) {
    ANNULUS_ASSIGN_OR_RETURN(NamedList list, ReadList(file, call));
    problem->lists.push_back(std::move(list));
  }
  return absl::OkStatus();
}

absl::Status CheckValuesFit(const TensorView& k, const TensorView& v) {
  if (v.tokens == k.tokens && v.heads == k.heads) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("v: [", v.tokens, ", ", v.heads, ", ", v.dim,
                                                 "]; expected k's tokens and heads [", k.tokens,
                                                 ", ", k.heads, ", d_v]"));
}

absl::StatusOr<DType> CommonDType(std::optional<DType> asked,
                                  absl::Span<const TensorView> tensors) {
  if (asked.has_value()) return *asked;
  const DType dtype = tensors.front().dtype;
  for (const TensorView& other : tensors) {
    if (other.data == nullptr || other.dtype == dtype) continue;
    return absl::InvalidArgumentError(absl::StrCat("dtypes of the files: ", Name(dtype), " and ",
                                                   Name(other.dtype),
                                                   "; expected one dtype or --dtype"));
  }
  return dtype;
}

absl::Status CheckBeforeSelection(ProblemFlags flags) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(flags));
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern,
                           Pattern::Parse(flags.pattern, static_cast<int>(flags.kv_heads)));
  for (const auto& selector : pattern.selectors()) {
    if (HasList(flags.lists, selector->name())) continue;
    ANNULUS_ASSIGN_OR_RETURN(auto no_keys, KeyList::Make(KeyListData{.begin = {0, 0}}));
    flags.lists.push_back({selector->name(), std::move(no_keys)});
  }
  return MakeProblem(flags).status();
}

absl::Status SelectLists(const TensorView& q, const TensorView& k, float scale, Backend& backend,
                         ProblemFlags* problem, const std::atomic<bool>* cancel) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(*problem));
  const int heads = static_cast<int>(problem->heads);
  const int kv_heads = static_cast<int>(problem->kv_heads);
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Parse(problem->pattern, kv_heads));
  if (pattern.selectors().empty()) return absl::OkStatus();
  const Layout layout = Layout::Tokens(problem->workers, heads, kv_heads, problem->placement,
                                       BlocksOf(problem->kv_tokens));
  const int64_t q_begin = problem->q_start.value_or(problem->kv_tokens - problem->q_tokens);
  ANNULUS_ASSIGN_OR_RETURN(
      std::vector<NamedList> made,
      SelectLocally(pattern, problem->lists, layout, q, q_begin, k, backend.pool(), scale, cancel));
  for (NamedList& list : made) problem->lists.push_back(std::move(list));
  return absl::OkStatus();
}

absl::Status StandInLists(ProblemFlags* problem, std::vector<std::string>* stand_ins) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(*problem));
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern,
                           Pattern::Parse(problem->pattern, static_cast<int>(problem->kv_heads)));
  const int64_t q_begin = problem->q_start.value_or(problem->kv_tokens - problem->q_tokens);
  for (const auto& selector : pattern.selectors()) {
    if (HasList(problem->lists, selector->name()) || !selector->picks_alike()) continue;
    const int64_t units = problem->kv_tokens / selector->unit_tokens() + 1;
    const int64_t picks = std::min(selector->picks(), units);
    if (problem->q_tokens > kListKeysMax / picks) {
      return absl::InvalidArgumentError(absl::StrCat(
          "q-tokens: ", problem->q_tokens, ", each of which sees ", picks, " units of ",
          selector->name(), "; expected at most list_keys_max ", kListKeysMax, " in all"));
    }
    ANNULUS_ASSIGN_OR_RETURN(
        auto list, KeyList::Make(StandInFor(*selector, {q_begin, q_begin + problem->q_tokens},
                                            problem->kv_tokens)));
    problem->lists.push_back({selector->name(), std::move(list)});
    stand_ins->push_back(selector->name());
  }
  return absl::OkStatus();
}

absl::StatusOr<Problem> MakeProblem(const ProblemFlags& flags) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(flags));
  const int heads = static_cast<int>(flags.heads);
  const int kv_heads = static_cast<int>(flags.kv_heads);
  ANNULUS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Parse(flags.pattern, kv_heads));
  ANNULUS_RETURN_IF_ERROR(pattern.CheckTokens(flags.kv_tokens));
  ANNULUS_ASSIGN_OR_RETURN(pattern, pattern.Bind(flags.lists, heads));
  const int64_t q_begin = flags.q_start.value_or(flags.kv_tokens - flags.q_tokens);
  ANNULUS_RETURN_IF_ERROR(pattern.CheckLists({q_begin, q_begin + flags.q_tokens}, flags.kv_tokens));
  std::optional<int64_t> keys_end;
  if (flags.keys.has_value()) {
    pattern = pattern.KeysFrom(flags.keys->begin);
    keys_end = flags.keys->end;
  }
  return Problem{.q_tokens = flags.q_tokens,
                 .q_start = flags.q_start,
                 .kv_tokens = flags.kv_tokens,
                 .keys_end = keys_end,
                 .heads = heads,
                 .kv_heads = kv_heads,
                 .head_dim = static_cast<int>(flags.head_dim),
                 .v_head_dim = static_cast<int>(flags.v_head_dim),
                 .v_is_k_prefix = flags.v_is_k_prefix,
                 .dtype = flags.dtype,
                 .pattern = std::move(pattern),
                 .home = Home::kOwners,
                 .home_partition = flags.placement,
                 .kv = Layout::Tokens(flags.workers, heads, kv_heads, flags.placement,
                                      BlocksOf(flags.kv_tokens))};
}

}  // namespace annulus
