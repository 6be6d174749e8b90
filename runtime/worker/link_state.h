// LinkState: how a worker stands with its coordinator.
#pragma once

#include "absl/strings/string_view.h"

namespace annulus {

enum class LinkState {
  kJoining,
  kReady,      // the coordinator counts on it
  kRejoining,  // the coordinator is gone; what it holds is kept for the next one
  kLost,
  kLeft,  // in good order
};

constexpr absl::string_view Name(LinkState state) {
  constexpr absl::string_view kNames[] = {"joining", "ready", "rejoining", "lost", "left"};
  return kNames[static_cast<int>(state)];
}

}  // namespace annulus
