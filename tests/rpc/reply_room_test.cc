// Answers that list more contexts than one message has room for.
#include "runtime/server/reply_room.h"

#include <string>

#include "runtime/protocol/public/annulus.pb.h"
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

template <typename Message, typename Answer>
Message Sent(const Answer& answer) {
  const std::string bytes = FittedBytesOf(answer);
  CHECK(bytes.size() < (32 << 20) + 10'000);
  Message message;
  CHECK(message.ParseFromString(bytes));
  return message;
}

TEST_CASE("a status counts the contexts that its message has no room for") {
  ClusterStatus status;
  status.contexts = Contexts(1000);
  status.contexts_left_out = 2;
  const auto sent = Sent<v1::ClusterStatus>(status);
  REQUIRE(sent.contexts_size() == 419);
  CHECK(sent.contexts(418).context() == 419);
  CHECK(sent.contexts_left_out() == 583);

  ClusterStatus small;
  small.contexts = Contexts(3);
  CHECK(Sent<v1::ClusterStatus>(small).contexts_size() == 3);
  CHECK(Sent<v1::ClusterStatus>(small).contexts_left_out() == 0);
}

TEST_CASE("a list ends where its message does") {
  CHECK(Sent<v1::ContextList>(ContextList{Contexts(1000)}).contexts_size() == 419);
  CHECK(Sent<v1::ContextList>(ContextList{Contexts(419)}).contexts_size() == 419);
  CHECK(Sent<v1::ContextList>(ContextList{Contexts(3)}).contexts_size() == 3);
}

}  // namespace
}  // namespace annulus
