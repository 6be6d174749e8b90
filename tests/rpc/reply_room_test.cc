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

template <typename Answer>
Answer Sent(const Answer& answer) {
  const std::string bytes = FittedBytesOf(answer);
  CHECK(bytes.size() < (32 << 20) + 10'000);
  return ReplyOf<Answer>(bytes).value();
}

TEST_CASE("a status counts the contexts that its message has no room for") {
  ClusterStatus status;
  status.contexts = Contexts(1000);
  status.contexts_left_out = 2;
  const ClusterStatus sent = Sent(status);
  CHECK(sent.contexts.size() == 419);
  CHECK(sent.contexts.back().id == 419);
  CHECK(sent.contexts_left_out == 583);

  ClusterStatus small;
  small.contexts = Contexts(3);
  CHECK(Sent(small).contexts.size() == 3);
  CHECK(Sent(small).contexts_left_out == 0);
}

TEST_CASE("a list ends where its message does") {
  CHECK(Sent(ContextList{Contexts(1000)}).contexts.size() == 419);
  CHECK(Sent(ContextList{Contexts(419)}).contexts.size() == 419);
  CHECK(Sent(ContextList{Contexts(3)}).contexts.size() == 3);
}

}  // namespace
}  // namespace annulus
