// What tests of words that choose for whole prompts ask of a service.
#pragma once

#include "annulus/types.h"
#include "attention/partial.h"
#include "runtime/service/service.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus::test {

// A context of which one layer holds the first `tokens` of `kv`.
inline ContextId Fill(Service& service, const ContextSpec& spec, const LayerKv& kv,
                      int64_t tokens) {
  const ContextId id = service.Call(spec, CallContext()).value().id;
  REQUIRE(service.Call(kv.Append(id, 0, 0, tokens), CallContext()).ok());
  return id;
}

// The answer differs from the oracle's by less than `most`.
inline void CheckAnswer(Service& service, const AttendRequest& request, const Partial& oracle,
                        double most) {
  const auto answer = service.Call(request, CallContext());
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(WorstError(answer->out, answer->lse, oracle) < most);
}

}  // namespace annulus::test
