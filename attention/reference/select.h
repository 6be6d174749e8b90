// Which units each selector's definition lets a query see, in float64, one row at a time, with the
// scores rounded to f32 once: what selections are compared with. Shares no code with select/.
// Slow: reads every key before the query. Functions are thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"

namespace annulus {

// A query row at absolute `position`, and the first kv_tokens keys of its KV head.
struct ReferenceQuery {
  TensorView q;  // [rows, heads, dim]
  int64_t row = 0;
  int head = 0;
  TensorView k;  // [tokens, kv_heads, dim]; token 0 is position 0
  int kv_head = 0;
  int64_t position = 0;
  int64_t kv_tokens = 0;
};

// The blocks, or pages, that moba(block,topk) and quest(budget,page) let it see, ascending.
std::vector<int32_t> ReferenceMoba(const ReferenceQuery& query, int64_t block, int64_t topk);
std::vector<int32_t> ReferenceQuest(const ReferenceQuery& query, int64_t budget, int64_t page);

// The blocks that nsa(topk,block) lets the query heads of kv_head see; `head` says nothing.
std::vector<int32_t> ReferenceNsa(const ReferenceQuery& query, int64_t topk, int64_t block);

// The blocks that xattention(threshold,stride,block) lets the block of queries see that begins at
// `row` and ends with the call or at a multiple of `block`.
std::vector<int32_t> ReferenceXAttention(const ReferenceQuery& query, double threshold,
                                         int64_t stride, int64_t block);
// The regions that biformer(region,topk) lets the region see of which the call's queries begin at
// `row`; `head` and kv_head say nothing.
std::vector<int32_t> ReferenceBiFormer(const ReferenceQuery& query, int64_t region, int64_t topk);

// The tokens that dsa(topk) lets it see: q has all index queries, of which `head` says none, with
// their weights [q.heads]; k [tokens, 1, dim] has a track's rows.
// Of the track's rows k [rows, kv_heads, dim], one for `block` tokens, and gate queries of as many
// heads; `budget` 0: by the threshold.
std::vector<int32_t> ReferenceSeer(const ReferenceQuery& query, int64_t budget, double threshold,
                                   int64_t block);

std::vector<int32_t> ReferenceDsa(const ReferenceQuery& query, const float* weights, int64_t topk);
// The blocks that msa(block,topk) lets it see, of the index query `head`; k as before.
std::vector<int32_t> ReferenceMsa(const ReferenceQuery& query, int64_t block, int64_t topk);

}  // namespace annulus
