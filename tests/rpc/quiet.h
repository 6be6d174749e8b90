// Refusals and gRPC are logged, and there are many of them in some tests.
#pragma once

#include "base/log.h"
#include "runtime/protocol/public/channel.h"

namespace annulus::test {

struct Quiet {
  Quiet() {
    SilenceLibraries();
    SetLogLevel(LogLevel::kOff);
  }
  ~Quiet() { SetLogLevel(LogLevel::kInfo); }
};

}  // namespace annulus::test
