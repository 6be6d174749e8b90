#include "runtime/server/reply_room.h"

#include <cstddef>
#include <vector>

#include "runtime/protocol/public/convert.h"

namespace annulus {
namespace {

constexpr size_t kContextsBytesMax = 32 << 20;

// How many of the first there is room for.
size_t CountThatFit(const std::vector<ContextInfo>& contexts) {
  size_t bytes = 0;
  size_t count = 0;
  while (count < contexts.size()) {
    bytes += BytesOf(contexts[count]).size();
    if (bytes > kContextsBytesMax) break;
    ++count;
  }
  return count;
}

}  // namespace

void FitMessage(ContextList* list) {
  list->contexts.resize(CountThatFit(list->contexts));
}

void FitMessage(ClusterStatus* status) {
  const size_t count = CountThatFit(status->contexts);
  status->contexts_left_out += static_cast<int64_t>(status->contexts.size() - count);
  status->contexts.resize(count);
}

}  // namespace annulus
