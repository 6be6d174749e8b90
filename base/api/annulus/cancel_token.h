// CancelToken: ends calls that are under way. Copies are the same token; it may be given to any
// number of calls, and stays cancelled. Thread-safe.
#pragma once

#include <memory>

namespace annulus {

class CancelToken {
 public:
  CancelToken() = default;  // of calls that nobody cancels
  static CancelToken New();

  // Calls with this token end soon with CANCELLED, and so do those that start later. What a call
  // has changed by then stays changed. Nothing happens if the token is a default one.
  void Cancel() const;
  bool cancelled() const;

 private:
  friend class CancelWatch;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace annulus
