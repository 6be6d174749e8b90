#include "sharding/plan.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace annulus {

absl::string_view Name(PlanKind kind) {
  switch (kind) {
    case PlanKind::kRing:
      return "ring";
    case PlanKind::kRingContiguous:
      return "ring-contiguous";
    case PlanKind::kHeads:
      return "heads";
    case PlanKind::kMesh:
      return "mesh";
    case PlanKind::kGroupCast:
      return "group-cast";
    case PlanKind::kPassQ:
      return "pass-q";
  }
  return "unknown";
}

absl::StatusOr<PlanKind> ParsePlanKind(absl::string_view text) {
  std::string known;
  for (PlanKind kind : kPlanKinds) {
    if (text == Name(kind)) return kind;
    absl::StrAppend(&known, known.empty() ? "" : ", ", Name(kind));
  }
  return absl::InvalidArgumentError(absl::StrCat("plan: \"", absl::CHexEscape(text.substr(0, 64)),
                                                 "\"; expected one of ", known));
}

BlockSet Problem::QueryBlocks() const {
  const int64_t first = q_range().begin / kBlockTokens;
  return BlockSet::Range(first, BlocksOf(q_range().end) - first);
}

BlockSet Problem::KvBlocks() const {
  const int64_t first = keys().begin / kBlockTokens;
  return BlockSet::Range(first, BlocksOf(keys().end) - first);
}

BlockSet Problem::HomeRows(int rank) const {
  const int64_t blocks = BlocksOf(kv_tokens), end = BlocksOf(q_range().end);
  const Partition tokens(home_partition, 0, blocks, world());
  BlockSet mine = tokens.BlocksOf(rank);
  if (end > blocks && tokens.Owner(blocks - 1) == rank) {
    mine = mine.Union(BlockSet::Range(blocks, end - blocks));
  }
  return mine.Intersect(QueryBlocks());
}

int64_t Problem::Rows(const BlockSet& blocks) const {
  const BlockSet mine = blocks.Intersect(QueryBlocks());
  const int64_t begin = q_range().begin;
  // The first query block may begin with tokens that are not queries.
  const int64_t before = mine.Contains(begin / kBlockTokens) ? begin % kBlockTokens : 0;
  return mine.TokenCount(q_range().end) - before;
}

Plan::Plan(PlanKind kind, Problem problem, std::vector<Round> rounds, int stages)
    : kind_(kind), problem_(std::move(problem)), rounds_(std::move(rounds)), stages_(stages) {}

int64_t Plan::Bytes(const Transfer& transfer) const {
  const int64_t element = static_cast<int64_t>(SizeOf(problem_.dtype));
  const int64_t heads = transfer.heads.count;
  switch (transfer.kind) {
    case Transfer::Kind::kQuery:
      return problem_.Rows(transfer.blocks) * heads * problem_.head_dim * element;
    case Transfer::Kind::kKv: {
      const int64_t dims = problem_.head_dim + (problem_.v_is_k_prefix ? 0 : problem_.v_head_dim);
      return transfer.blocks.TokenCount(problem_.keys().end) * heads * dims * element;
    }
    case Transfer::Kind::kPartial:
      return problem_.Rows(transfer.blocks) * heads * (problem_.v_head_dim + 1) *
             static_cast<int64_t>(sizeof(float));
  }
  return 0;
}

int64_t Plan::BytesSent(int rank) const {
  int64_t bytes = 0;
  for (const Round& round : rounds_) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.source == rank) bytes += Bytes(transfer);
    }
  }
  return bytes;
}

int64_t Plan::BytesReceived(int rank) const {
  int64_t bytes = 0;
  for (const Round& round : rounds_) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.destination == rank) bytes += Bytes(transfer);
    }
  }
  return bytes;
}

int64_t Plan::BytesTotal() const {
  int64_t bytes = 0;
  for (const Round& round : rounds_) {
    for (const Transfer& transfer : round.transfers) bytes += Bytes(transfer);
  }
  return bytes;
}

std::string Plan::ToString() const {
  std::string text =
      absl::StrCat(Name(kind_), " over ", world(), " ranks: ", problem_.q_tokens, " x ",
                   problem_.kv_tokens, " tokens, ", problem_.heads, " heads, ", problem_.kv_heads,
                   " kv heads, ", BytesTotal(), " bytes in ", rounds_.size(), " rounds\n");
  for (size_t i = 0; i < rounds_.size(); ++i) {
    int64_t bytes[3] = {0, 0, 0};
    for (const Transfer& transfer : rounds_[i].transfers) {
      bytes[static_cast<int>(transfer.kind)] += Bytes(transfer);
    }
    absl::StrAppend(&text, "  round ", i, ": ", rounds_[i].transfers.size(), " transfers (q ",
                    bytes[0], ", kv ", bytes[1], ", partials ", bytes[2], " bytes), ",
                    rounds_[i].computes.size(), " computes",
                    rounds_[i].drop_received_kv ? ", then drops received kv\n" : "\n");
  }
  return text;
}

}  // namespace annulus
