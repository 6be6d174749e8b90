// Answers that list more contexts than one message has room for.
#include "runtime/server/reply_room.h"

#include <string>

#include "runtime/protocol/public/convert.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// 80 KB each.
std::vector<ContextInfo> Contexts(int count) {
  std::vector<ContextInfo> contexts(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    contexts[i].id = static_cast<ContextId>(i) + 1;
    contexts[i].spec.patterns = {std::string(80'000, ' ')};
  }
  return contexts;
}

TEST_CASE("a status counts the contexts that its message has no room for") {
  ClusterStatus status;
  status.contexts = Contexts(1000);
  FitMessage(&status);
  CHECK(status.contexts.size() == 419);
  CHECK(status.contexts.back().id == 419);
  CHECK(status.contexts_left_out == 581);
  CHECK(BytesOf(status).size() < (32 << 20) + 100);

  ClusterStatus small;
  small.contexts = Contexts(3);
  FitMessage(&small);
  CHECK(small.contexts.size() == 3);
  CHECK(small.contexts_left_out == 0);
}

TEST_CASE("a list ends where its message does") {
  ContextList list{Contexts(1000)};
  FitMessage(&list);
  CHECK(list.contexts.size() == 419);
}

}  // namespace
}  // namespace annulus
