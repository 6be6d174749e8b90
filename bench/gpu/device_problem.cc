#include "bench/gpu/device_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "attention/cuda/work_list.h"
#include "attention/reference/reference.h"
#include "attention/select/choose.h"
#include "base/rng.h"
#include "base/status.h"
#include "bench/gpu/fill.h"
#include "bench/kernels/listed.h"

namespace annulus {
namespace {

using cuda::StatusOf;

constexpr uint64_t kSeed = 20260101;

std::vector<int64_t> LengthsOf(const GpuShape& shape) {
  std::vector<int64_t> lengths(static_cast<size_t>(shape.contexts), shape.tokens);
  if (!shape.ragged) return lengths;
  const int64_t total = shape.tokens * shape.contexts;
  const int64_t parts = int64_t{shape.contexts} * (shape.contexts + 1) / 2;
  int64_t left = total;
  for (int i = 0; i + 1 < shape.contexts; ++i) {
    lengths[static_cast<size_t>(i)] = std::max<int64_t>(shape.q_tokens, total * (i + 1) / parts);
    left -= lengths[static_cast<size_t>(i)];
  }
  lengths.back() = left;
  return lengths;
}

// Of a word that chooses keys, one query head.
int64_t PairsOf(const Selector& word, TokenRange q, int64_t tokens) {
  int64_t pairs = 0;
  for (int64_t i = q.begin; i < q.end; ++i) {
    const int64_t own = word.OwnUnit(i, tokens);
    pairs += std::min(own, word.picks() - 1) * word.unit_tokens();
    pairs += std::min(i + 1, tokens) - own * word.unit_tokens();
  }
  return pairs;
}

absl::Status CopyBack(void* to, const void* from, size_t bytes) {
  return StatusOf(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceProblem>> DeviceProblem::Make(const GpuShape& shape) {
  ANNULUS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Parse(shape.pattern, shape.kv_heads));
  if (!shape.listed.empty()) {
    pattern = BindListed(pattern, shape.listed, shape.heads, {0, shape.tokens});
  }
  std::unique_ptr<DeviceProblem> problem(new DeviceProblem(shape, std::move(pattern)));
  ANNULUS_RETURN_IF_ERROR(problem->Allocate());
  return problem;
}

size_t DeviceProblem::PageBytes() const {
  const int dims = shape_.head_dim + (shape_.latent ? 0 : v_head_dim_);
  return static_cast<size_t>(kBlockTokens * dims) * SizeOf(shape_.dtype);
}

KvPage DeviceProblem::PageAt(const std::byte* page) const {
  if (shape_.latent) return {page, page, shape_.head_dim, shape_.head_dim};
  const size_t k_bytes = static_cast<size_t>(kBlockTokens * shape_.head_dim) * SizeOf(shape_.dtype);
  return {page, page + k_bytes, shape_.head_dim, v_head_dim_};
}

absl::Status DeviceProblem::Allocate() {
  const std::vector<int64_t> lengths = LengthsOf(shape_);
  int64_t pages = 0;
  for (const int64_t tokens : lengths) pages += BlocksOf(tokens) * shape_.kv_heads;
  rows_ = shape_.contexts * shape_.q_tokens * shape_.heads;
  const size_t element = SizeOf(shape_.dtype);
  const auto row_floats = static_cast<size_t>(rows_ * shape_.head_dim);
  ANNULUS_RETURN_IF_ERROR(q_.Reserve(row_floats * element));
  ANNULUS_RETURN_IF_ERROR(kv_.Reserve(static_cast<size_t>(pages) * PageBytes()));
  ANNULUS_RETURN_IF_ERROR(out_.Reserve(static_cast<size_t>(rows_ * v_head_dim_) * sizeof(float)));
  ANNULUS_RETURN_IF_ERROR(lse_.Reserve(static_cast<size_t>(rows_) * sizeof(float)));
  const int64_t outliers = shape_.outliers ? shape_.head_dim : 0;
  const int format = static_cast<int>(cuda::FormatOf(shape_.dtype));
  ANNULUS_RETURN_IF_ERROR(StatusOf(
      FillNormal(q_.data(), static_cast<int64_t>(row_floats), format, kSeed, outliers, nullptr),
      "fill"));
  const size_t kv_elements = static_cast<size_t>(pages) * PageBytes() / element;
  ANNULUS_RETURN_IF_ERROR(StatusOf(FillNormal(kv_.data(), static_cast<int64_t>(kv_elements), format,
                                              kSeed + 1, outliers, nullptr),
                                   "fill"));
  int64_t first_page = 0;
  for (const int64_t tokens : lengths) {
    AddContext(tokens, first_page, pages);
    first_page += BlocksOf(tokens) * shape_.kv_heads;
  }
  for (size_t i = 0; i < contexts_.size(); ++i) {
    const Context& context = contexts_[i];
    keys_.push_back(BlockSet::Range(0, BlocksOf(context.tokens)));
    const int64_t at = context.row_first * shape_.heads;
    AttendArgs args;
    args.q = TensorView::Contiguous(q_.data() + context.q_at, shape_.dtype, context.q_tokens,
                                    shape_.heads, shape_.head_dim);
    args.q_ranges = {{context.tokens - context.q_tokens, context.tokens}};
    args.heads = {0, shape_.heads};
    args.kv_tokens = context.tokens;
    args.group = shape_.heads / shape_.kv_heads;
    args.pattern = &pattern_;
    args.scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
    args.into = {reinterpret_cast<float*>(out_.data()) + at * v_head_dim_,
                 reinterpret_cast<float*>(lse_.data()) + at, context.q_tokens, shape_.heads,
                 v_head_dim_};
    args.memory = MemoryKind::kDevice;
    batch_.push_back(args);
  }
  for (size_t i = 0; i < contexts_.size(); ++i) {  // once they stay where they are
    batch_[i].kv = &contexts_[i].kv;
    batch_[i].keys = &keys_[i];
  }
  return StatusOf(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void DeviceProblem::AddContext(int64_t tokens, int64_t first_page, int64_t pages) {
  Context context;
  context.tokens = tokens;
  context.q_tokens = shape_.q_tokens;
  context.row_first = static_cast<int64_t>(contexts_.size()) * shape_.q_tokens;
  const size_t element = SizeOf(shape_.dtype);
  context.q_at = static_cast<size_t>(context.row_first * shape_.heads * shape_.head_dim) * element;
  context.kv =
      KvTable(shape_.dtype, 0, shape_.kv_heads, shape_.head_dim, v_head_dim_, BlocksOf(tokens));
  context.kv.set_memory(MemoryKind::kDevice);
  // A step that has no common factor with the number of pages visits each of them once.
  int64_t step = shape_.scattered ? pages * 5 / 8 | 1 : 1;
  while (std::gcd(step, pages) != 1) step += 2;
  int64_t at = first_page;
  for (int64_t block = 0; block < BlocksOf(tokens); ++block) {
    for (int head = 0; head < shape_.kv_heads; ++head, ++at) {
      const int64_t page = at * step % pages;
      context.kv.Set(head, block, PageAt(kv_.data() + static_cast<size_t>(page) * PageBytes()));
    }
  }
  const int group = shape_.heads / shape_.kv_heads;
  if (!pattern_.selectors().empty()) {
    const int64_t pairs =
        PairsOf(*pattern_.selectors()[0], {tokens - context.q_tokens, tokens}, tokens);
    visited_pairs_ += pairs * shape_.heads;
    work_pairs_ += pairs * shape_.heads;
  }
  for (int head = 0; pattern_.selectors().empty() && head < shape_.kv_heads; ++head) {
    const PairCount pairs = pattern_.CountPairs(head, {tokens - context.q_tokens, tokens}, tokens);
    visited_pairs_ += pairs.visited * group;
    work_pairs_ += pairs.work * group;
  }
  kv_bytes_ += tokens * shape_.kv_heads * static_cast<int64_t>(PageBytes()) / kBlockTokens;
  contexts_.push_back(std::move(context));
}

absl::Status DeviceProblem::Reset(cudaStream_t stream) {
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(FillValue(reinterpret_cast<float*>(out_.data()), rows_ * v_head_dim_,
                         std::numeric_limits<float>::quiet_NaN(), stream),
               "fill"));
  return StatusOf(FillValue(reinterpret_cast<float*>(lse_.data()), rows_,
                            -std::numeric_limits<float>::infinity(), stream),
                  "fill");
}

// A table over copies of one head's pages.
absl::StatusOr<KvTable> DeviceProblem::OnHost(const Context& context, int kv_head,
                                              std::vector<std::byte>* bytes) {
  const size_t page_bytes = PageBytes();
  const int64_t blocks = BlocksOf(context.tokens);
  bytes->resize(static_cast<size_t>(blocks) * page_bytes);
  KvTable kv(shape_.dtype, kv_head, 1, shape_.head_dim, v_head_dim_, blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    std::byte* to = bytes->data() + static_cast<size_t>(block) * page_bytes;
    ANNULUS_RETURN_IF_ERROR(CopyBack(to, context.kv.page(kv_head, block).k, page_bytes));
    kv.Set(kv_head, block, PageAt(to));
  }
  return kv;
}

absl::StatusOr<Pattern> DeviceProblem::PatternOf(const std::byte* q, int64_t position,
                                                 const KvTable& kv, int64_t kv_tokens) const {
  if (pattern_.selectors().empty()) return pattern_;
  const int kv_head = kv.kv_head_first(), heads = kv_head + 1;
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Parse(pattern_.text(), heads));
  const SelectRows rows{.selector = pattern.selectors()[0].get(),
                        .q = TensorView::Contiguous(q, kv.dtype(), 1, 1, kv.head_dim()),
                        .q_begin = position,
                        .heads = {kv_head, 1},
                        .kv_tokens = kv_tokens};
  std::vector<int64_t> chunks;
  const PageSummary form(*rows.selector, kv.head_dim());
  const int64_t units = rows.selector->OwnUnit(position, kv_tokens);
  for (int64_t unit = 0; unit < units; ++unit) chunks.push_back(unit);
  ANNULUS_ASSIGN_OR_RETURN(const ScoredBy scored,
                           SummariesOf(form, {.kv = &kv}, kv_head, chunks, kv_tokens));
  std::vector<std::vector<Candidate>> best(1);
  BestOf(rows, kv_head, 0, 1, scored, absl::MakeSpan(best));
  KeyListData data;
  data.rows = KeyListData::Rows::kToken;
  data.block_tokens = form.unit_tokens;
  data.heads = 1;
  data.q_begin = position;
  for (const Candidate& candidate : best[0]) data.keys.push_back(candidate.unit);
  data.keys.push_back(static_cast<int32_t>(units));
  std::sort(data.keys.begin(), data.keys.end());
  data.begin = {0, static_cast<int64_t>(data.keys.size())};
  ANNULUS_ASSIGN_OR_RETURN(auto list, KeyList::Make(std::move(data)));
  const NamedList named{rows.selector->name(), std::move(list)};
  return pattern.Bind({&named, 1}, heads);
}

absl::StatusOr<DeviceProblem::Errors> DeviceProblem::Check(int rows) {
  Errors worst;
  Rng rng(kSeed);
  const size_t q_bytes = static_cast<size_t>(shape_.head_dim) * SizeOf(shape_.dtype);
  std::vector<std::byte> q(q_bytes);
  std::vector<float> out(static_cast<size_t>(v_head_dim_));
  std::vector<std::byte> pages;
  const int group = shape_.heads / shape_.kv_heads;
  const int64_t each = std::max(1, rows / 2);  // rows of one head at a time
  for (int64_t done = 0; done < rows; done += each) {
    const size_t at = rng.Below(batch_.size());
    const AttendArgs& args = batch_[at];
    const Context& context = contexts_[at];
    const auto head = static_cast<int>(rng.Below(static_cast<uint64_t>(shape_.heads)));
    ANNULUS_ASSIGN_OR_RETURN(const KvTable kv, OnHost(context, head / group, &pages));
    for (int64_t i = 0; i < each; ++i) {
      const int64_t row = rng.Between(0, args.q.tokens - 1);
      const int64_t place = row * shape_.heads + head;
      float lse = 0;
      ANNULUS_RETURN_IF_ERROR(CopyBack(q.data(), args.q.Row(row, head), q_bytes));
      ANNULUS_RETURN_IF_ERROR(CopyBack(&lse, args.into.lse + place, sizeof(lse)));
      ANNULUS_RETURN_IF_ERROR(
          CopyBack(out.data(), args.into.out + place * v_head_dim_, out.size() * sizeof(float)));
      const int64_t position = args.q_ranges[0].begin + row;
      ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern,
                               PatternOf(q.data(), position, kv, context.tokens));
      ANNULUS_ASSIGN_OR_RETURN(const ReferenceAnswer answer,
                               ReferenceRow(q.data(), shape_.dtype, kv, context.tokens,
                                            pattern.Member(head % pattern.members()), head / group,
                                            position, args.scale, args.keys));
      const RowError error = ErrorOf(out.data(), lse, answer);
      // A row that sees nothing keeps its out.
      if (!std::isinf(answer.lse)) worst.out = std::max(worst.out, error.out);
      worst.lse = std::max(worst.lse, error.lse);
    }
  }
  return worst;
}

}  // namespace annulus
