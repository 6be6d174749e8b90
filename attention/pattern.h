// Patterns: which keys each query sees, as a small language.
//
//   p | p   union        p & p   intersection, binds tighter        ( p )
//   heads(0-3: p; 4-31: p)       by KV head, each head named exactly once; may stand inside & and |
//
//   full    causal       window(left[,right=0])      sink(n)      rows(from[,to])   keys(from[,to])
//   docs(length,length,…)        segments(tokens[,shift=0])
//   band(block,n)                slash(block,distance,distance,…)
//   s2(block,local,stride[,dense_heads=0][,step=S][,offset=0])    s2r(block,left,right,stride)
//   power(block,window,sink)
//   na(TxHxW,window=w[,stride=1][,dilation=1][,causal=0][,extra=0])
//   grid(HxW,n)    cross(HxW,width)    disk(HxW,radius[,text=0])
//   permute(seed,tokens,p)       order(TxHxW,axes,p)
//   list(name)      what data says that comes with a call (key_list.h)
//   quest(budget[,page=16])      moba(block,topk)      nsa(topk[,block=64])
//   xattention(threshold[,stride=16][,block=128])      biformer(region[,topk=4])
//   seer(budget[,block=64])      seer(threshold=x[,block=64])      minference(v,s)
//   flexprefill(gamma[,tau=0.1][,min=1024])
//                       keys chosen by data (selector.h)
//
// patterns/ defines each word; `annulus methods` prints them. Arguments go by position or by name.
// Numbers are unsigned decimal integers; lengths, blocks, local and strides ≥ 1; step = 0 gives all
// heads the same stride. window counts tokens (window(1) = self); s2's local and stride, power's
// window and sink, band's n and slash's distances count blocks of `block` tokens. `causal` is
// implied by s2, power, band and what chooses keys by data, but biformer. power's d & (d − 1) = 0
// holds for the query's own block (d = 0) too, so a window of 0 is one of 1. docs' lengths sum to
// the context's tokens (CheckTokens); of a context that grows without a known end the last document
// has none: its queries see all keys from its start on, whatever length it was given. Grids have
// one to three extents joined by x, their tokens in raster order from position 0 on (disk: after
// its text); what na takes for each axis is joined likewise, or one number for all. Beyond a grid
// nobody sees or is seen.
//
// A pattern is a set of (kv_head, query position, key position) over absolute positions.
// Allows() is its meaning; Row(), CellMask() and CountPairs() agree with it everywhere and never
// walk tokens or pairs. Immutable value, cheap to copy, safe to share between threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/block_set.h"
#include "attention/key_list.h"
#include "attention/ranges.h"
#include "attention/row_bands.h"
#include "base/stop.h"

namespace annulus {

// Bounds of a pattern; the errors that meet them name them.
inline constexpr int kKvHeadsMax = 1024;
inline constexpr size_t kPatternBytesMax = size_t{1} << 20;  // of the text
// Terms of one KV head's rule after expansion: what a row of 64 queries may cost in time and
// memory.
inline constexpr int64_t kPatternTermsMax = int64_t{1} << 15;
// Names in list(name) and words that choose keys by data, different ones: each is a list of a call.
inline constexpr size_t kPatternListsMax = 16;
// Parts of the rules of all KV heads that differ: what a text may cost in time and memory.
inline constexpr int64_t kPatternPartsMax = int64_t{1} << 18;

// A run of KV blocks that a query block sees: whole (every existing pair allowed) or in part.
struct TileRun {
  BlockRun blocks;
  bool full = false;
};

// Pair counts over one query head. Keys exist in [first_key, kv_tokens).
struct PairCount {
  int64_t visited = 0;  // allowed (query, key) pairs, exact
  int64_t work = 0;     // existing pairs of every 64×64 cell that holds an allowed pair
};

class Selector;     // selector.h
class PatternNode;  // one head's rule, private to the implementation
struct DocsTotal;   // likewise

struct PatternCoverage;

class Pattern {
 public:
  // Parses and checks `text` for a model with `kv_heads` KV heads, 1 to 1024. Errors are
  // INVALID_ARGUMENT, one line, with the position in the text (bytes, the first is 1), what stands
  // there (escaped and cut) and what was expected. Text is limited to 1 MiB, nesting to 64 levels,
  // primitives to 4096, their expansion to kPatternTermsMax terms for a KV head,
  // the heads' rules to kPatternPartsMax parts in all, and what stands for lists to
  // kPatternListsMax.
  static absl::StatusOr<Pattern> Parse(absl::string_view text, int kv_heads);

  // The same pattern whose list(name) mean `lists`, for a model with `heads` query heads: each
  // list is for all heads, KV heads or query heads (KV heads where their numbers are equal).
  // INVALID_ARGUMENT names the list unless the text names it, it is given once, and the number of
  // its heads is one of these.
  absl::StatusOr<Pattern> Bind(absl::Span<const NamedList> lists, int heads) const;
  const std::vector<NamedList>& lists() const { return lists_; }
  // The names in list(name), ascending, each once.
  const std::vector<std::string>& list_names() const { return list_names_; }
  // The words whose keys are chosen by data, by name, each once. Each stands for a list of its
  // name, by query head, that Select makes.
  const std::vector<std::shared_ptr<const Selector>>& selectors() const { return selectors_; }

  // Where a list differs between the query heads of a KV head: query head `member` of each KV
  // head's group sees what Member(member) says, and this pattern what some of them see.
  bool by_query_head() const { return members_ != nullptr; }
  int members() const { return by_query_head() ? static_cast<int>(members_->size()) : 1; }
  const Pattern& Member(int member) const {
    return by_query_head() ? (*members_)[static_cast<size_t>(member)] : *this;
  }

  // Another one for each Parse and Bind; copies keep it, so that what is worked out from a pattern
  // is found again without its text.
  int64_t id() const { return id_; }

  // What Parse was given, verbatim.
  const std::string& text() const { return text_; }
  int kv_heads() const { return kv_heads_; }

  // INVALID_ARGUMENT unless docs' lengths sum to exactly `kv_tokens`. Not to be asked of a context
  // that grows without a known end.
  absl::Status CheckTokens(int64_t kv_tokens) const;

  // INVALID_ARGUMENT unless every list(name) has its list, with rows of all queries `q` and keys
  // among `kv_tokens` tokens.
  absl::Status CheckLists(TokenRange q, int64_t kv_tokens) const;

  // The same pattern over the keys from `first` on alone: nobody sees those before. What was
  // parsed, its text and its classes of heads stay.
  Pattern KeysFrom(int64_t first) const;
  int64_t first_key() const { return first_key_; }

  // Whether the query at absolute position q sees the key at k under `kv_head`.
  bool Allows(int kv_head, int64_t q, int64_t k) const;

  // The KV blocks that queries [q.begin, q.end) see in a context of kv_tokens tokens, as disjoint
  // runs ordered by first block. q is not empty and lies within one 64-token block. A run is full
  // only if every pair (query in q, existing key) of it is allowed; every block with an allowed
  // pair is in exactly one run; no block without one is in any. `out` is cleared first.
  void Row(int kv_head, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out) const;

  // The same blocks of all queries `q`, any range, as few bands, full or not. False, and `out` is
  // of no meaning, where the rows do not follow from one another: then Row gives them one by one.
  bool Stretches(int kv_head, TokenRange q, int64_t kv_tokens, std::vector<RowStretch>* out) const;

  // The allowed pairs of one cell: bit k of mask[r] says whether query 64·q_block + r sees key
  // 64·k_block + k. All 64 rows are written, positions beyond any context end included.
  void CellMask(int kv_head, int64_t q_block, int64_t k_block, uint64_t mask[64]) const;
  // The same of queries `q` alone, which lie within one block: all other rows are 0.
  void CellMask(int kv_head, TokenRange q, int64_t k_block, uint64_t mask[64]) const;

  // Exact pair counts of queries q (any range) over one query head of `kv_head`; of no meaning once
  // `stop` has stopped.
  PairCount CountPairs(int kv_head, TokenRange q, int64_t kv_tokens, const Stop& stop = {}) const;

  // The lowest KV head with the same rule as `kv_head`: compile once per class.
  int HeadClass(int kv_head) const;

  // Blocks that no query at position ≥ `next_q` can ever need again under kv_head, among those of
  // the first `kv_tokens` tokens: what a KV-efficient cache may evict. Empty unless the pattern
  // guarantees it (S2 §3.3: a block once dropped outside the local window is never needed again).
  BlockSet Evictable(int kv_head, int64_t next_q, int64_t kv_tokens) const;

 private:
  friend PatternCoverage Coverage(const Pattern& pattern, TokenRange q, int64_t kv_tokens);

  Pattern() = default;

  static int64_t NextId();
  void SetRules(std::vector<std::shared_ptr<const PatternNode>> rules);

  int64_t id_ = 0;
  std::string text_;
  int kv_heads_ = 0;
  int64_t first_key_ = 0;
  std::vector<std::shared_ptr<const PatternNode>> rules_;  // by KV head, `heads` resolved
  std::vector<int> classes_;                               // by KV head, HeadClass
  std::shared_ptr<const std::vector<DocsTotal>> docs_;
  std::vector<std::string> list_names_;
  std::vector<std::shared_ptr<const Selector>> selectors_;
  std::vector<NamedList> lists_;
  std::shared_ptr<const std::vector<Pattern>> members_;  // null: query heads do not differ
};

// Which share of the keys [first_key, kv_tokens) the union of all KV heads lets the queries q see,
// in [0, 1], and the mean share of blocks that a KV-efficient cache keeps per head after kv_tokens.
struct PatternCoverage {
  double covered = 0;
  double kept_kv = 0;
};
PatternCoverage Coverage(const Pattern& pattern, TokenRange q, int64_t kv_tokens);

}  // namespace annulus
