// Which workers hold a context. Pure functions of what is known of workers and contexts.
//
// A context takes all ready workers: one for each rank, or a pair. It begins where the fullest of
// those that take its first tokens is the least full: short contexts lie on few workers, and not
// always on the same. Of a pair now the one and now the other answers queries.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/members.h"

namespace annulus {

// KV of each worker that is there, by its limit: what it holds, and what contexts without KV will
// take first. The members must outlive it.
class Loads {
 public:
  Loads(const Members& members, const std::map<ContextId, Context>& contexts);

  // As if the context, one that may move, were not there.
  Loads Without(const Context& context) const;
  double With(WorkerId id, double bytes) const;  // bytes more

 private:
  void AddExpected(const Context& context, double times);

  const Members& members_;
  std::map<WorkerId, double> loads_;
};

// Fills in the ranks and holders of a map that has none. REQUIRES: its retention. Fewer ready
// workers than replicas, or none: UNAVAILABLE where more may be ready before long, else
// FAILED_PRECONDITION.
absl::Status Place(ShardMap& map, const Members& members, const Loads& loads);

// Puts the first holder of each rank in its place as the one that answers. False, and nothing is
// changed, if some rank has none.
bool Arrange(ShardMap& map);

// The fabrics of a map's holders, as in wire::Open.
struct Addresses {
  std::vector<std::string> answering;  // by rank
  std::vector<wire::Copy> copies;
};
Addresses AddressesOf(const ShardMap& map, const Members& members);

// Bytes of the blocks that an append of these tokens begins, on all holders together; of the block
// in which it begins too, if it `copies` that.
int64_t NewBlockBytes(const ShardMap& map, int layer, TokenRange tokens, bool copies);

}  // namespace annulus
