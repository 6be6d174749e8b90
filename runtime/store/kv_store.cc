#include "runtime/store/kv_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"
#include "runtime/store/crc32c.h"

namespace annulus {
namespace {

absl::Status NoContext(ContextId id) {
  return absl::NotFoundError(absl::StrCat("context ", id, " is not held here"));
}

}  // namespace

absl::Status KvStore::Open(ContextId id, const ContextSpec& spec, int world, int rank) {
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(spec));
  if (contexts_.contains(id)) {
    return absl::AlreadyExistsError(absl::StrCat("context ", id, " is already held here"));
  }
  const HeadRange heads = LayoutOf(spec, world, 0).KvHeads(rank);
  auto context = std::make_unique<Context>(Shard{spec, world, rank}, heads,
                                           static_cast<size_t>(PageBytes(spec)));
  for (Layer& layer : context->layers) {
    layer.table =
        KvTable(spec.dtype, heads.first, heads.count, spec.head_dim, spec.v_head_dim, /*blocks=*/0);
  }
  contexts_.emplace(id, std::move(context));
  ++contexts_count_;
  return absl::OkStatus();
}

absl::StatusOr<KvStore::Layer*> KvStore::FindLayer(ContextId id, int layer, Context** context) {
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  *context = found->second.get();
  if (layer < 0 || layer >= (*context)->shard.spec.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer is ", layer, ", expected below ", (*context)->shard.spec.layers));
  }
  return &(*context)->layers[layer];
}

absl::Status KvStore::Reserve(const Context& context, const Layer& layer, const Layout& layout,
                              TokenRange tokens) const {
  int64_t pages = 0;
  ForEachOwnedBlock(layout, context.shard.rank, tokens, [&](int64_t block, TokenRange) {
    const size_t first = static_cast<size_t>(block * context.kv_heads.count);
    const bool held = first < layer.pages.size() && layer.pages[first].data != nullptr;
    if (!held) pages += context.kv_heads.count;
  });
  const int64_t wanted = pages * PageBytes(context.shard.spec);
  if (wanted > kv_bytes_limit_ - kv_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("kv_bytes_limit is ", kv_bytes_limit_, ": ",
                                                     kv_bytes(), " in use, this append needs ",
                                                     wanted, " more; release contexts"));
  }
  return absl::OkStatus();
}

void KvStore::GrowTables(const Context& context, Layer& layer, int64_t tokens) {
  const int64_t blocks = BlocksOf(tokens);
  layer.table.Extend(blocks);
  const size_t pages = static_cast<size_t>(blocks * context.kv_heads.count);
  if (pages > layer.pages.size()) layer.pages.resize(pages);
}

std::byte* KvStore::EnsurePage(Context& context, Layer& layer, int64_t block, int head) {
  Page& page = layer.pages[block * context.kv_heads.count + head - context.kv_heads.first];
  if (page.data == nullptr) {
    const ContextSpec& spec = context.shard.spec;
    page.data = layer.arenas[static_cast<size_t>(head - context.kv_heads.first)].Allocate();
    ++context.pages_in_use;
    kv_bytes_ += PageBytes(spec);
    const std::byte* v = page.data;
    if (!spec.v_is_k_prefix) v += kBlockTokens * spec.head_dim * SizeOf(spec.dtype);
    layer.table.Set(
        head, block,
        {page.data, v, spec.head_dim, spec.v_is_k_prefix ? spec.head_dim : spec.v_head_dim});
  }
  return page.data;
}

absl::Status KvStore::Append(ContextId id, int layer_index, TokenRange tokens,
                             const Buffer& packed) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(id, layer_index, &context));
  const ContextSpec& spec = context->shard.spec;
  if (tokens.begin < 0 || tokens.begin >= tokens.end || tokens.end > kContextTokensMax ||
      (spec.tokens_expected > 0 && tokens.end > spec.tokens_expected)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens [", tokens.begin, ", ", tokens.end, ") are outside the context"));
  }
  if (tokens.begin > layer->tokens) {
    return absl::FailedPreconditionError(absl::StrCat(
        "append at ", tokens.begin, " leaves a gap: ", layer->tokens, " tokens are stored"));
  }
  const Layout layout = LayoutOf(spec, context->shard.world, tokens.end);
  const int64_t expected = AppendBytes(spec, layout, context->shard.rank, tokens);
  if (static_cast<int64_t>(packed.size()) != expected) {
    return absl::DataLossError(
        absl::StrCat("append brought ", packed.size(), " bytes, expected ", expected));
  }
  TrimLayer(*context, *layer, tokens.begin);
  ANNULUS_RETURN_IF_ERROR(Reserve(*context, *layer, layout, tokens));
  GrowTables(*context, *layer, tokens.end);

  const size_t k_row = static_cast<size_t>(spec.head_dim) * SizeOf(spec.dtype);
  const size_t v_row = static_cast<size_t>(TokenBytes(spec)) - k_row;
  const std::byte* from = packed.data();
  const HeadRange heads = context->kv_heads;
  ForEachOwnedBlock(layout, context->shard.rank, tokens, [&](int64_t block, TokenRange rows) {
    const auto first = static_cast<size_t>(rows.begin - block * kBlockTokens);
    const auto count = static_cast<size_t>(rows.size());
    for (int head = heads.first; head < heads.end(); ++head) {
      std::byte* data = EnsurePage(*context, *layer, block, head);
      std::memcpy(data + first * k_row, from, count * k_row);
      from += count * k_row;
      std::memcpy(data + kBlockTokens * k_row + first * v_row, from, count * v_row);
      from += count * v_row;
      if (rows.end == (block + 1) * kBlockTokens) {
        Page& page = layer->pages[block * heads.count + head - heads.first];
        page.crc = Crc32c(data, context->page_bytes);
        page.sealed = true;
      }
    }
  });
  layer->tokens = tokens.end;
  return absl::OkStatus();
}

void KvStore::TrimLayer(Context& context, Layer& layer, int64_t tokens) {
  if (tokens >= layer.tokens) return;
  const HeadRange heads = context.kv_heads;
  for (int64_t block = tokens / kBlockTokens; block < BlocksOf(layer.tokens); ++block) {
    for (int head = heads.first; head < heads.end(); ++head) {
      Page& page = layer.pages[block * heads.count + head - heads.first];
      page.sealed = false;
      if (page.data == nullptr || block * kBlockTokens < tokens) continue;
      layer.arenas[static_cast<size_t>(head - heads.first)].Free(std::exchange(page.data, nullptr));
      --context.pages_in_use;
      layer.table.Set(head, block, {});
      kv_bytes_ -= static_cast<int64_t>(context.page_bytes);
    }
  }
  layer.tokens = tokens;
}

absl::Status KvStore::Trim(ContextId id, int layer_index, int64_t tokens) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(id, layer_index, &context));
  TrimLayer(*context, *layer, tokens);
  return absl::OkStatus();
}

absl::Status KvStore::Release(ContextId id) {
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  kv_bytes_ -= ContextBytes(id);
  contexts_.erase(found);
  --contexts_count_;
  return absl::OkStatus();
}

absl::StatusOr<const KvTable*> KvStore::Table(ContextId id, int layer_index, int64_t kv_tokens) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(id, layer_index, &context));
  if (kv_tokens < 1 || kv_tokens > layer->tokens) {
    return absl::FailedPreconditionError(absl::StrCat(
        "kv_len is ", kv_tokens, ", but layer ", layer_index, " holds ", layer->tokens, " tokens"));
  }
  return &layer->table;
}

absl::StatusOr<KvStore::Shard> KvStore::Find(ContextId id) const {
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  return found->second->shard;
}

absl::Status KvStore::Verify(ContextId id, int layer_index, HeadRange kv_heads,
                             const BlockSet& blocks) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, FindLayer(id, layer_index, &context));
  const HeadRange heads = context->kv_heads;
  const int64_t blocks_stored = BlocksOf(layer->tokens);
  for (const BlockRun& run : blocks.runs()) {
    for (int64_t block = run.first; block <= run.last() && block < blocks_stored;
         block += run.step) {
      for (int head = std::max(heads.first, kv_heads.first);
           head < std::min(heads.end(), kv_heads.end()); ++head) {
        const Page& page = layer->pages[block * heads.count + head - heads.first];
        if (!page.sealed) continue;
        if (Crc32c(page.data, context->page_bytes) != page.crc) {
          return absl::DataLossError(absl::StrCat("context ", id, " layer ", layer_index,
                                                  " kv head ", head, " block ", block,
                                                  " has changed in memory (CRC32C); create the "
                                                  "context again and upload it"));
        }
      }
    }
  }
  return absl::OkStatus();
}

int64_t KvStore::ContextBytes(ContextId id) const {
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return 0;
  const Context& context = *found->second;
  return context.pages_in_use * static_cast<int64_t>(context.page_bytes);
}

}  // namespace annulus
