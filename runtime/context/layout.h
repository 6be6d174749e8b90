// Where the KV of a context lies, from its spec and the number of its ranks alone: coordinator and
// workers each work it out and agree. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "annulus/types.h"
#include "runtime/limits.h"
#include "sharding/plan.h"

namespace annulus {

class Retention;

// INVALID_ARGUMENT names the field, its value and what is expected.
absl::Status ValidateSpec(const ContextSpec& spec);
// The same but for what the patterns say.
absl::Status CheckSpecFields(const ContextSpec& spec);

// All else that the spec says; patterns may be long, and are not copied.
ContextSpec WithoutPatterns(const ContextSpec& spec);

// Which heads the ranks of a valid spec serve. Placements that cut heads do it by what its patterns
// make of a KV head, over all layers: what a KV-efficient context keeps, else what its last query
// reads, at tokens_expected or, without a known end, at 128K tokens. What holds a context keeps it.
// `retention`: the spec's.
HeadMap HeadMapOf(const ContextSpec& spec, int world, const Retention& retention);
// The same for who has no other use for the patterns: parses them.
HeadMap HeadMapOf(const ContextSpec& spec, int world);

// Who holds which (kv head, block) of a context's first `tokens` over `world` ranks. Block-cyclic
// cuts every prefix alike; contiguous and zigzag depend on the whole length, so their layout is
// that of tokens_expected, whatever is there already. `heads`: HeadMapOf.
Layout LayoutOf(const ContextSpec& spec, int world, const HeadMap& heads, int64_t tokens);
// The same for who asks once.
Layout LayoutOf(const ContextSpec& spec, int world, int64_t tokens);

// Layers that are stored: the context's, then those of its tracks.
inline int StoredLayers(const ContextSpec& spec) {
  return TrackLayer(spec, static_cast<int>(spec.tracks.size()), 0);
}

// Tokens to a row of a stored layer, and the rows that the context's first `tokens` come with.
inline int64_t RatioOf(const ContextSpec& spec, int layer) {
  if (layer < spec.layers) return 1;
  return spec.tracks[static_cast<size_t>(layer / spec.layers - 1)].ratio;
}
inline int64_t RowsOf(const ContextSpec& spec, int layer, int64_t tokens) {
  return tokens / RatioOf(spec, layer);
}

// What people call it: "layer 3", or "layer 5 (track "index" of layer 1)".
std::string LayerName(const ContextSpec& spec, int layer);

// Rows of tracks are stored as those of contexts with these specs, whose tokens are the rows: KV
// heads without V, which all ranks have rows of, where they have the tokens if units allow it.
std::vector<ContextSpec> TrackSpecs(const ContextSpec& spec);

// Of a stored layer; `tracks`: TrackSpecs.
inline const ContextSpec& SpecOfLayer(const ContextSpec& spec,
                                      const std::vector<ContextSpec>& tracks, int layer) {
  return layer < spec.layers ? spec : tracks[static_cast<size_t>(layer / spec.layers - 1)];
}
Layout LayoutOfLayer(const ContextSpec& spec, const std::vector<ContextSpec>& tracks, int layer,
                     int world, const HeadMap& heads, int64_t tokens);

// Queries at the positions `q` over the keys `keys` of a context's first kv_tokens, which lie as
// `kv` says, attended from outside the ranks; plans that cut query rows do it zigzag. The pattern
// must have been parsed for spec.kv_heads.
Problem ProblemOf(const ContextSpec& spec, Layout kv, TokenRange q, int64_t kv_tokens,
                  TokenRange keys, const Pattern& pattern);

// The keys that a request lets its queries see; they may make no sense.
inline TokenRange KeysOf(const AttendRequest& request) {
  return {request.keys_begin, request.keys_end.value_or(request.kv_len)};
}

// What queries of a layer are attended with: what the call asked for, else the context's pattern
// for the layer, else causal. A track's layer has the pattern of the context's.
const std::string& PatternOf(const ContextSpec& spec, int layer, const std::string& asked);

// Bytes of one token of one KV head: a K row and, unless V is K's prefix, a V row.
int64_t TokenBytes(const ContextSpec& spec);

// KV bytes over all ranks of a context with these tokens, by stored layer, if nothing is let go of.
int64_t DenseBytes(const ContextSpec& spec, const HeadMap& heads,
                   const std::vector<int64_t>& tokens);

// A page is one block of one KV head: K rows [64, head_dim], then V rows [64, v_head_dim] unless V
// is K's prefix. The one canonical layout, in memory, on the wire and under its CRC.
int64_t PageBytes(const ContextSpec& spec);

}  // namespace annulus
