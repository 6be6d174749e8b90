#include "runtime/server/reply_room.h"

#include <cstddef>
#include <utility>
#include <vector>

#include "runtime/protocol/public/convert.h"

namespace annulus {
namespace {

constexpr size_t kContextsBytesMax = 32 << 20;

// How many of the first there is room for. Encodes them one by one.
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

void CutTo(size_t count, ContextList* list) {
  list->contexts.resize(count);
}

void CutTo(size_t count, ClusterStatus* status) {
  status->contexts_left_out += static_cast<int64_t>(status->contexts.size() - count);
  status->contexts.resize(count);
}

// Few answers are too large, so that most are encoded once.
template <typename Answer>
std::string Fitted(Answer answer) {
  std::string bytes = BytesOf(answer);
  if (bytes.size() <= kContextsBytesMax) return bytes;
  CutTo(CountThatFit(answer.contexts), &answer);
  return BytesOf(answer);
}

}  // namespace

std::string FittedBytesOf(ContextList list) {
  return Fitted(std::move(list));
}

std::string FittedBytesOf(ClusterStatus status) {
  return Fitted(std::move(status));
}

}  // namespace annulus
