#include "runtime/store/kv_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"

namespace annulus {
namespace {

absl::Status NoContext(ContextId id) {
  return absl::NotFoundError(absl::StrCat("context ", id, " is not held here"));
}

absl::Status HeldAlready(ContextId id) {
  return absl::AlreadyExistsError(absl::StrCat("context ", id, " is already held here"));
}

using Lock = std::lock_guard<std::mutex>;

// What patterns take as text and parsed, by what they take as text.
constexpr int64_t kPatternFactor = 4;

}  // namespace

int64_t KvStore::Context::layer_bytes(int layer) const {
  constexpr int64_t kDequeBytes = 1024;  // of an empty one, with what malloc adds
  return static_cast<int64_t>(sizeof(Layer) + sizeof(LayerArenas)) + kDequeBytes +
         annulus::CountOf(shard.kv_heads(layer)) * static_cast<int64_t>(sizeof(PageArena));
}

absl::Status KvStore::ReserveTables(Context& context, int64_t bytes) {
  const std::string& owner = context.shard.spec.owner;
  ANNULUS_RETURN_IF_ERROR(tables_.Check(owner, bytes));
  tables_.Add(owner, bytes);
  context.table_bytes += bytes;
  return absl::OkStatus();
}

absl::StatusOr<KvStore::Layer*> KvStore::MakeLayer(Context& context, int layer) {
  const Lock lock(mutex_);
  std::unique_ptr<Layer>& made = context.layers[static_cast<size_t>(layer)];
  if (made != nullptr) return made.get();
  ANNULUS_RETURN_IF_ERROR(ReserveTables(context, context.layer_bytes(layer)));
  const ContextSpec& spec = context.shard.SpecOf(layer);
  auto summaries =
      std::make_shared<const std::vector<PageSummary>>(SummariesOf(context, layer, space_.kind()));
  auto arenas = std::make_shared<LayerArenas>(space_);
  const HeadRanges heads = context.shard.kv_heads(layer);
  const auto page_bytes = static_cast<size_t>(PageTable::PageBytesWith(spec, *summaries));
  for (int i = 0; i < annulus::CountOf(heads); ++i) {
    arenas->by_head.emplace_back(page_bytes, &arenas->memory, CountOf(context));
  }
  made.reset(new Layer{.pages = PageTable(spec, heads, std::move(arenas), std::move(summaries))});
  return made.get();
}

// Pages of a GPU have none: a host works on summaries. Rows that are scored themselves have none.
std::vector<PageSummary> KvStore::SummariesOf(const Context& context, int layer, MemoryKind kind) {
  std::vector<PageSummary> summaries;
  if (kind != MemoryKind::kHost || layer >= context.shard.spec.layers) return summaries;
  for (const auto& selector : context.retention->pattern(layer).selectors()) {
    if (selector->index().has_value() || selector->by_column() != nullptr) continue;
    if (selector->summary() == Summary::kRows) continue;
    const PageSummary form(*selector, context.shard.spec.head_dim);
    const bool is_new = std::none_of(summaries.begin(), summaries.end(),
                                     [&](const auto& kept) { return kept.SamePages(form); });
    if (is_new) summaries.push_back(form);
  }
  return summaries;
}

LayerState KvStore::StateOf(const Layer* layer) {
  if (layer == nullptr) return {};
  return {layer->tokens, layer->horizon, layer->last, layer->last_tokens};
}

absl::Status KvStore::Open(ContextId id, const ContextSpec& spec, int world, int rank) {
  ANNULUS_RETURN_IF_ERROR(CheckSpecFields(spec));
  ANNULUS_ASSIGN_OR_RETURN(Retention retention, Retention::Of(spec));
  if (FindContext(id).ok()) return HeldAlready(id);
  auto context = std::make_unique<Context>();
  context->shard = {spec, world, rank, HeadMapOf(spec, world, retention), TrackSpecs(spec)};
  context->owned = CountOf(spec.owner);
  context->retention = std::make_shared<const Retention>(std::move(retention));
  context->layers.resize(static_cast<size_t>(StoredLayers(spec)));
  int64_t bytes = static_cast<int64_t>(sizeof(Context) + sizeof(Retention)) +
                  StoredLayers(spec) * static_cast<int64_t>(sizeof(std::unique_ptr<Layer>)) +
                  std::ssize(spec.tracks) * static_cast<int64_t>(sizeof(ContextSpec));
  for (const std::string& pattern : spec.patterns) {
    bytes += kPatternFactor * static_cast<int64_t>(sizeof(Pattern) + pattern.size());
  }
  return Add(id, std::move(context), bytes);
}

absl::Status KvStore::Add(ContextId id, std::unique_ptr<Context> context, int64_t table_bytes) {
  const Lock lock(mutex_);
  ANNULUS_RETURN_IF_ERROR(ReserveTables(*context, table_bytes));
  contexts_.emplace(id, std::move(context));
  ++contexts_count_;
  return absl::OkStatus();
}

absl::StatusOr<KvStore::Context*> KvStore::FindContext(ContextId id) const {
  const Lock lock(mutex_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  return found->second.get();
}

absl::Status KvStore::Fork(ContextId parent_id, ContextId id, const std::vector<int64_t>& tokens) {
  ANNULUS_ASSIGN_OR_RETURN(const Context* held, FindContext(parent_id));
  if (FindContext(id).ok()) return HeldAlready(id);
  const Context& parent = *held;
  if (tokens.size() != parent.layers.size()) {
    return absl::FailedPreconditionError(absl::StrCat("fork of ", tokens.size(),
                                                      " layers, but context ", parent_id, " has ",
                                                      parent.layers.size()));
  }
  for (size_t layer = 0; layer < tokens.size(); ++layer) {
    const int64_t held = StateOf(parent.layers[layer].get()).tokens;
    if (tokens[layer] < 0 || tokens[layer] > held) {
      return absl::FailedPreconditionError(absl::StrCat("fork at ", tokens[layer], ", but layer ",
                                                        layer, " of context ", parent_id, " holds ",
                                                        held, " tokens"));
    }
  }
  auto context = std::make_unique<Context>();
  context->shard = parent.shard;
  context->owned = parent.owned;
  context->retention = parent.retention;
  context->layers.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (parent.layers[i] == nullptr) continue;
    context->layers[i] = std::make_unique<Layer>(*parent.layers[i]);
    Cut(*context->layers[i], tokens[i]);
    context->layers[i]->last.key = {};  // keys are of one context
  }
  return Add(id, std::move(context), parent.table_bytes);
}

absl::StatusOr<KvStore::Layer*> KvStore::FindLayer(ContextId id, int layer,
                                                   Context** context) const {
  const Lock lock(mutex_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  *context = found->second.get();
  const int layers = StoredLayers((*context)->shard.spec);
  if (layer < 0 || layer >= layers) {
    return absl::InvalidArgumentError(absl::StrCat("layer: ", layer, "; expected below ", layers));
  }
  return (*context)->layers[static_cast<size_t>(layer)].get();
}

absl::Status KvStore::Read(ContextId id, int layer_index, TokenRange tokens, std::byte* to) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, FindLayer(id, layer_index, &context));
  if (tokens.end > StateOf(layer).tokens || layer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("tokens up to ", tokens.end,
                                                      " are asked for, but layer ", layer_index,
                                                      " holds ", StateOf(layer).tokens));
  }
  const ContextSpec& spec = context->shard.SpecOf(layer_index);
  ANNULUS_RETURN_IF_ERROR(
      Verify(id, layer_index, {0, spec.kv_heads},
             BlockSet::Range(tokens.begin / kBlockTokens,
                             BlocksOf(tokens.end) - tokens.begin / kBlockTokens)));
  const Layout layout = context->shard.layout(layer_index, tokens.end);
  return LoadRows(space_, spec, layout, context->shard.rank, tokens, layer->pages, to);
}

// Frees what no query from `horizon` on can need. Only what the horizon's step adds is looked at.
void KvStore::Evict(const Context& context, int layer_index, int64_t horizon, Layer& layer) {
  if (horizon <= layer.horizon) return;
  const int64_t before = std::exchange(layer.horizon, horizon);
  const int64_t pages_before = layer.pages.pages_held();
  const Retention& retention = *context.retention;
  ForEachHead(layer.pages.heads(), [&](int head) {
    const BlockSet gone = retention.Gone(layer_index, head, horizon)
                              .Subtract(retention.Gone(layer_index, head, before));
    for (const BlockRun& run : gone.runs()) {
      for (int64_t i = 0; i < run.count; ++i) layer.pages.Drop(head, run.first + i * run.step);
    }
  });
  evicted_bytes_ += (pages_before - layer.pages.pages_held()) * layer.pages.page_bytes();
}

void KvStore::Cut(Layer& layer, int64_t tokens) {
  if (tokens >= layer.tokens) return;
  layer.pages.Cut(BlocksOf(tokens));
  layer.tokens = tokens;
  layer.horizon = std::min(layer.horizon, HorizonOf(tokens));
}

absl::Status KvStore::TruncateLayer(ContextId id, int layer_index, int64_t tokens) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(id, layer_index, &context));
  if (layer == nullptr) return absl::OkStatus();
  Cut(*layer, tokens);
  if (layer->last_tokens.end > tokens) layer->last.key = {};
  return absl::OkStatus();
}

absl::Status KvStore::RollBack(ContextId id, const std::vector<LayerState>& layers) {
  ANNULUS_ASSIGN_OR_RETURN(Context* const found, FindContext(id));
  Context& context = *found;
  const auto& stored = context.layers;
  const bool is_part =
      std::equal(layers.begin(), layers.end(), stored.begin(), stored.end(),
                 [](const auto& a, const auto& b) { return a.tokens <= StateOf(b.get()).tokens; });
  if (!is_part) {
    return absl::FailedPreconditionError(absl::StrCat("context ", id, " has other layers"));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (stored[i] == nullptr && layers[i] == LayerState{}) continue;
    ANNULUS_ASSIGN_OR_RETURN(Layer * layer, MakeLayer(context, static_cast<int>(i)));
    Cut(*layer, layers[i].tokens);
    Evict(context, static_cast<int>(i), layers[i].horizon, *layer);
    layer->last = layers[i].last;
    layer->last_tokens = layers[i].last_tokens;
  }
  return absl::OkStatus();
}

absl::Status KvStore::Truncate(ContextId id, int64_t tokens) {
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, FindContext(id));
  for (size_t i = 0; i < context->layers.size(); ++i) {
    if (context->layers[i] == nullptr) continue;
    Cut(*context->layers[i], RowsOf(context->shard.spec, static_cast<int>(i), tokens));
  }
  return absl::OkStatus();
}

absl::Status KvStore::Release(ContextId id) {
  std::unique_ptr<Context> released;  // without the mutex: to zero pages takes a while
  const Lock lock(mutex_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoContext(id);
  released = std::move(found->second);
  tables_.Add(released->shard.spec.owner, -released->table_bytes);
  contexts_.erase(found);
  --contexts_count_;
  return absl::OkStatus();
}

absl::StatusOr<const KvTable*> KvStore::Table(ContextId id, int layer_index, int64_t kv_tokens) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(id, layer_index, &context));
  if (kv_tokens < 1 || kv_tokens > StateOf(layer).tokens) {
    return absl::FailedPreconditionError(absl::StrCat("kv_len is ", kv_tokens, ", but layer ",
                                                      layer_index, " holds ", StateOf(layer).tokens,
                                                      " tokens"));
  }
  return &layer->pages.kv();
}

absl::StatusOr<SelectKeys> KvStore::KeysToSelect(ContextId id, int layer_index, int64_t kv_tokens,
                                                 const PageSummary& form) {
  ANNULUS_ASSIGN_OR_RETURN(const KvTable* table, Table(id, layer_index, kv_tokens));
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, FindLayer(id, layer_index, &context));
  SelectKeys keys{.kv = table, .space = &space_};
  if (!layer->pages.Keeps(form)) return keys;
  keys.known = [form, pages = &layer->pages](int kv_head, int64_t block) {
    return pages->Summary(form, kv_head, block);
  };
  return keys;
}

absl::StatusOr<SelectKeys> KvStore::RowsToSelect(ContextId id, int layer, int64_t kv_tokens) {
  ANNULUS_ASSIGN_OR_RETURN(const KvTable* table, Table(id, layer, kv_tokens));
  return SelectKeys{.kv = table, .space = &space_};
}

absl::StatusOr<const KvStore::Shard*> KvStore::Find(ContextId id) const {
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, FindContext(id));
  return &context->shard;
}

const Pattern& KvStore::PatternOfLayer(ContextId id, int layer) const {
  return (*FindContext(id))->retention->pattern(layer);
}

absl::Status KvStore::Verify(ContextId id, int layer_index, HeadRange kv_heads,
                             const BlockSet& blocks) {
  Context* context = nullptr;
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, FindLayer(id, layer_index, &context));
  if (layer == nullptr) return absl::OkStatus();
  const auto page_bytes = static_cast<size_t>(PageBytes(context->shard.SpecOf(layer_index)));
  const int64_t blocks_stored = BlocksOf(layer->tokens);
  std::vector<const Page*> pages;
  std::vector<std::pair<int, int64_t>> places;  // KV head and block
  for (const BlockRun& run : blocks.runs()) {
    for (int64_t block = run.first; block <= run.last() && block < blocks_stored;
         block += run.step) {
      ForEachHead(layer->pages.heads(), [&](int head) {
        if (head < kv_heads.first || head >= kv_heads.end()) return;
        const Page* page = layer->pages.Find(head, block);
        if (page == nullptr || !page->sealed) return;
        pages.push_back(page);
        places.emplace_back(head, block);
      });
    }
  }
  ANNULUS_ASSIGN_OR_RETURN(const size_t changed, FindChanged(space_, page_bytes, pages));
  if (changed == pages.size()) return absl::OkStatus();
  const auto [head, block] = places[changed];
  return absl::DataLossError(absl::StrCat("context ", id, " layer ", layer_index, " kv head ", head,
                                          " block ", block,
                                          " has changed in memory (CRC32C); create the context "
                                          "again and upload it"));
}

std::vector<ContextId> KvStore::ContextIds() const {
  const Lock lock(mutex_);
  std::vector<ContextId> ids;
  for (const auto& [id, context] : contexts_) ids.push_back(id);
  return ids;
}

std::vector<LayerState> KvStore::Layers(ContextId id) const {
  std::vector<LayerState> layers;
  for (const auto& layer : (*FindContext(id))->layers) layers.push_back(StateOf(layer.get()));
  return layers;
}

}  // namespace annulus
