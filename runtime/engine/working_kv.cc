#include "runtime/engine/working_kv.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/packed_pages.h"

namespace annulus {
namespace {

// The KV heads that this rank reads in its launches and passes on: a range.
HeadRange HeadsTouched(const Plan& plan, int rank) {
  const Problem& problem = plan.problem();
  const HeadRange held = SpanOf(problem.kv.KvHeads(rank));
  int first = held.count > 0 ? held.first : problem.kv_heads;
  int end = held.end();
  for (const Round& round : plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.kind != Transfer::Kind::kKv || transfer.destination != rank) continue;
      first = std::min(first, transfer.heads.first);
      end = std::max(end, transfer.heads.end());
    }
    for (const Compute& compute : round.computes) {
      if (compute.rank != rank || compute.heads.count == 0) continue;
      first = std::min(first, compute.heads.first / problem.group());
      end = std::max(end, (compute.heads.end() - 1) / problem.group() + 1);
    }
  }
  return {first, std::max(0, end - first)};
}

bool Receives(const Plan& plan, int rank) {
  for (const Round& round : plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.kind == Transfer::Kind::kKv && transfer.destination == rank) return true;
    }
  }
  return false;
}

bool Covers(const KvTable& table, HeadRange heads, int64_t blocks) {
  return table.kv_head_first() <= heads.first &&
         heads.end() <= table.kv_head_first() + table.kv_heads() && blocks <= table.blocks();
}

// Rows of a page that go to `to`, without gaps. Neighbours in both memories are one copy.
void AddRows(const std::byte* from, size_t stride_bytes, int64_t rows, size_t row_bytes,
             std::byte* to, std::vector<RowsCopy>* copies) {
  if (!copies->empty() && stride_bytes == row_bytes) {
    RowsCopy& last = copies->back();
    const size_t last_bytes = static_cast<size_t>(last.rows) * last.row_bytes;
    if (last.from_stride_bytes == last.row_bytes && last.from + last_bytes == from &&
        last.to + last_bytes == to) {
      const size_t bytes = last_bytes + static_cast<size_t>(rows) * row_bytes;
      last = {last.from, last.to, 1, bytes, bytes, bytes};
      return;
    }
  }
  copies->push_back({from, to, rows, row_bytes, stride_bytes, row_bytes});
}

}  // namespace

WorkingKv::WorkingKv(const Plan& plan, int rank, const KvTable& own, MemorySpace& space)
    : problem_(plan.problem()), space_(space), own_(&own) {
  const HeadRange heads = HeadsTouched(plan, rank);
  own_suffices_ = !Receives(plan, rank) && Covers(own, heads, BlocksOf(problem_.keys().end));
  if (own_suffices_) return;
  merged_ = KvTable(problem_.dtype, heads.first, heads.count, problem_.head_dim,
                    problem_.v_head_dim, BlocksOf(problem_.keys().end));
  merged_.set_memory(space.kind());
  const int64_t blocks = std::min(own.blocks(), merged_.blocks());
  for (int h = own.kv_head_first(); h < own.kv_head_first() + own.kv_heads(); ++h) {
    if (h < heads.first || h >= heads.end()) continue;
    for (int64_t b = 0; b < blocks; ++b) merged_.Set(h, b, own.page(h, b));
  }
}

absl::StatusOr<Buffer> WorkingKv::Pack(const Transfer& transfer) {
  for (const Piece& piece : pieces_) {
    if (piece.heads == transfer.heads && piece.blocks.runs() == transfer.blocks.runs()) {
      return piece.bytes;
    }
  }
  const size_t element_bytes = SizeOf(problem_.dtype);
  const size_t k_row = KRowBytes(problem_);
  const size_t v_row = VRowBytes(problem_);
  ANNULUS_ASSIGN_OR_RETURN(Buffer bytes,
                           space_.Allocate(PackedBytes(problem_, transfer.heads, transfer.blocks)));
  std::vector<RowsCopy> copies;
  for (const PackedPage& to : PackedPagesOf(problem_, transfer.heads, transfer.blocks)) {
    const KvPage& page = table().page(to.head, to.block);
    if (page.k == nullptr || (v_row != 0 && page.v == nullptr)) {
      return absl::InternalError(absl::StrCat("plan sends block ", to.block, " of kv head ",
                                              to.head, " from a rank that does not hold it"));
    }
    const int64_t rows = to.tokens.size();
    std::byte* k = bytes.data() + to.at;
    AddRows(page.k, static_cast<size_t>(page.k_row_stride) * element_bytes, rows, k_row, k,
            &copies);
    if (v_row == 0) continue;
    AddRows(page.v, static_cast<size_t>(page.v_row_stride) * element_bytes, rows, v_row,
            k + static_cast<size_t>(rows) * k_row, &copies);
  }
  ANNULUS_RETURN_IF_ERROR(space_.Copy(copies));
  return bytes;
}

void WorkingKv::SetPages(const Piece& piece, bool present) {
  for (const PackedPage& page : PackedPagesOf(problem_, piece.heads, piece.blocks)) {
    merged_.Set(page.head, page.block,
                present ? PageIn(problem_, piece.bytes.data(), page) : KvPage());
  }
}

void WorkingKv::Receive(const Transfer& transfer, Buffer bytes) {
  pieces_.push_back({round_, transfer.heads, transfer.blocks, std::move(bytes)});
  SetPages(pieces_.back(), true);
}

void WorkingKv::DropReceived(int round) {
  for (const Piece& piece : pieces_) {
    if (piece.round < round) SetPages(piece, false);
  }
  std::erase_if(pieces_, [round](const Piece& piece) { return piece.round < round; });
}

}  // namespace annulus
