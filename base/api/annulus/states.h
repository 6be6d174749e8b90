// The states that a service tells of its contexts and workers. ContextInfo::state and
// WorkerStatus::state are their names. Plain values.
#pragma once

#include "absl/strings/string_view.h"

namespace annulus {

enum class ContextState {
  kOk,
  kMoving,      // to other workers; it answers meanwhile
  kDegraded,    // it answers, and a copy is missing
  kRecovering,  // it waits for workers to join again
  kLost,        // some KV is on no worker that is there
};
inline constexpr ContextState kContextStates[] = {ContextState::kOk, ContextState::kMoving,
                                                  ContextState::kDegraded,
                                                  ContextState::kRecovering, ContextState::kLost};

enum class WorkerState {
  kReady,
  kDraining,  // what it holds is moved away
  kLeft,      // once it was
  kLost,
};
inline constexpr WorkerState kWorkerStates[] = {WorkerState::kReady, WorkerState::kDraining,
                                                WorkerState::kLeft, WorkerState::kLost};

// "ok", "moving", "degraded", "recovering", "lost".
constexpr absl::string_view Name(ContextState state) {
  constexpr absl::string_view kNames[] = {"ok", "moving", "degraded", "recovering", "lost"};
  return kNames[static_cast<int>(state)];
}

// "ready", "draining", "left", "lost".
constexpr absl::string_view Name(WorkerState state) {
  constexpr absl::string_view kNames[] = {"ready", "draining", "left", "lost"};
  return kNames[static_cast<int>(state)];
}

}  // namespace annulus
