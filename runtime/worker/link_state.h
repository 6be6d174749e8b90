// LinkState: how a worker stands with its coordinator.
#pragma once

namespace annulus {

enum class LinkState {
  kJoining,
  kReady,      // the coordinator counts on it
  kRejoining,  // the coordinator is gone; what it holds is kept for the next one
  kLost,
  kLeft,  // in good order
};

}  // namespace annulus
