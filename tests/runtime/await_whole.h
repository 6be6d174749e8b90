// Waiting for a context that has lost a copy to move to workers that are whole.
#pragma once

#include <string>

#include "absl/time/clock.h"
#include "runtime/service/service.h"
#include "tests/catch.h"

namespace annulus::test {

inline void AwaitWhole(Service& service, ContextId id) {
  std::string state;
  for (int i = 0; i < 400 && state != "ok"; ++i) {
    state = service.Call(DescribeRequest{id}, CallContext()).value().state;
    if (state != "ok") absl::SleepFor(absl::Milliseconds(50));
  }
  CHECK(state == "ok");
}

}  // namespace annulus::test
