#include "runtime/coordinator/core/places.h"

#include <algorithm>

#include "attention/block_set.h"
#include "runtime/context/layout.h"

namespace annulus {

ContextPlaces PlacesOf(const Context& context) {
  const ShardMap& map = *context.map;
  ContextPlaces places;
  places.context = map.context;
  std::vector<WorkerId> by_rank(static_cast<size_t>(map.world));
  // Of a rank's holders the first answers.
  for (auto holder = map.holders.rbegin(); holder != map.holders.rend(); ++holder) {
    by_rank[static_cast<size_t>(holder->rank)] = holder->worker;
    const auto held = context.kv_bytes.find(holder->worker);
    places.kv_bytes[holder->worker] = held == context.kv_bytes.end() ? 0 : held->second;
  }
  int64_t tokens = 0;
  for (const Layer& layer : context.layers) tokens = std::max(tokens, layer.tokens);
  const int64_t blocks = BlocksOf(tokens);
  const int64_t parts = std::min(blocks, kPlacesParts);
  if (parts == 0) return places;
  const Layout layout = map.layout(0, tokens);
  for (int64_t part = 0; part < parts; ++part) {
    const int rank = layout.Source(0, layout.tokens().Owner(blocks * part / parts));
    places.parts.push_back(by_rank[static_cast<size_t>(rank)]);
  }
  return places;
}

}  // namespace annulus
