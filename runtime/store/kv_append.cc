// How a store takes appends.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/kv_store.h"
#include "runtime/store/page_io.h"

namespace annulus {

absl::StatusOr<int64_t> KvStore::Reserve(const Context& context, const Layer& layer,
                                         const Layout& layout, TokenRange tokens) {
  int64_t pages = 0;
  ForEachOwnedBlock(layout, context.shard.rank, tokens, [&](int64_t block, TokenRange) {
    ForEachHead(layer.pages.heads(),
                [&](int head) { pages += layer.pages.WriteNeedsPage(head, block) ? 1 : 0; });
  });
  const int64_t wanted = pages * layer.pages.page_bytes();
  if (!kv_bytes_.AddWithin(wanted, kv_bytes_limit_)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("kv_bytes_limit: ", kv_bytes_limit_, "; ", kv_bytes(),
                     " in use, this append needs ", wanted,
                     wanted > kv_bytes_limit_ ? " more; append less, or raise the limit"
                                              : " more; release contexts"));
  }
  if (context.owned != nullptr) context.owned->AddAlone(wanted);
  return pages;
}

// On an error `rows` is what it was: what the layer had got already is given back.
absl::Status KvStore::AppendRows(const LayerAppend& append, RowsUnderWay* rows) {
  const TokenRange tokens = append.tokens;
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(append.context, append.layer, &context));
  const ContextSpec& spec = context->shard.SpecOf(append.layer);
  if (tokens.begin < 0 || tokens.begin >= tokens.end || tokens.end > kContextTokensMax ||
      (spec.tokens_expected > 0 && tokens.end > spec.tokens_expected)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens [", tokens.begin, ", ", tokens.end, ") are outside the context"));
  }
  if (tokens.begin > StateOf(layer).tokens) {
    return absl::FailedPreconditionError(absl::StrCat("append at ", tokens.begin, " leaves a gap: ",
                                                      StateOf(layer).tokens, " tokens are stored"));
  }
  const Layout layout = context->shard.layout(append.layer, tokens.end);
  const int64_t expected = AppendBytes(spec, layout, context->shard.rank, tokens);
  if (static_cast<int64_t>(append.packed.size()) != expected) {
    return absl::DataLossError(
        absl::StrCat("rows of an append: ", append.packed.size(), " bytes; expected ", expected));
  }
  ANNULUS_ASSIGN_OR_RETURN(layer, MakeLayer(*context, append.layer));
  Cut(*layer, tokens.begin);
  Evict(*context, append.layer, append.horizon.value_or(HorizonOf(tokens.begin)), *layer);
  ANNULUS_ASSIGN_OR_RETURN(const int64_t pages, Reserve(*context, *layer, layout, tokens));
  layer->pages.Extend(BlocksOf(tokens.end));
  layer->pages.Expect(pages);
  const size_t copies_before = rows->copies.size();
  const size_t filled_before = rows->filled.size();
  const absl::Status stored = StoreRows(space_, pool_, spec, layout, context->shard.rank, tokens,
                                        append.packed, layer->pages, rows);
  CountOf(*context)->Add(-layer->pages.ExpectNoMore() * layer->pages.page_bytes());
  if (!stored.ok()) {
    rows->copies.resize(copies_before);
    rows->filled.resize(filled_before);
    layer->pages.Cut(BlocksOf(layer->tokens));
    return stored;
  }
  layer->tokens = tokens.end;
  layer->last = append.mark;
  layer->last_tokens = tokens;
  return absl::OkStatus();
}

std::vector<absl::Status> KvStore::AppendAll(absl::Span<const LayerAppend> appends) {
  RowsUnderWay rows;
  std::vector<absl::Status> statuses;
  for (const LayerAppend& append : appends) statuses.push_back(AppendRows(append, &rows));
  const absl::Status finished = FinishRows(space_, rows);
  for (size_t i = 0; i < appends.size() && !finished.ok(); ++i) {
    if (!statuses[i].ok()) continue;
    statuses[i] = finished;
    statuses[i].Update(
        TruncateLayer(appends[i].context, appends[i].layer, appends[i].tokens.begin));
  }
  return statuses;
}

absl::Status KvStore::Append(ContextId id, int layer, TokenRange tokens,
                             absl::Span<const std::byte> packed, const AppendMark& mark,
                             std::optional<int64_t> horizon) {
  return AppendAll({{id, layer, tokens, packed, mark, horizon}})[0];
}

}  // namespace annulus
