// CancelWatch: what a call under way does when its token is cancelled. The token's own lock is held
// while `on_cancel` runs, so that a watch that is gone never runs again: make and destroy watches
// without any lock that `on_cancel` takes.
#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "annulus/cancel_token.h"

namespace annulus {

class CancelWatch {
 public:
  // Runs on_cancel at most once: here if the token is cancelled already, else on the thread that
  // cancels it.
  CancelWatch(const CancelToken& token, std::function<void()> on_cancel);
  ~CancelWatch();
  CancelWatch(const CancelWatch&) = delete;
  CancelWatch& operator=(const CancelWatch&) = delete;

  // Waits until then, or until the token is cancelled.
  static void Sleep(const CancelToken& token, absl::Time until);

 private:
  const std::shared_ptr<CancelToken::State> state_;
  const std::function<void()> on_cancel_;
};

}  // namespace annulus
