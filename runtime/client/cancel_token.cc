#include "annulus/cancel_token.h"

#include <condition_variable>
#include <mutex>
#include <set>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/client/cancel_watch.h"

namespace annulus {

struct CancelToken::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool cancelled = false;
  std::set<const std::function<void()>*> watches;
};

CancelToken CancelToken::New() {
  CancelToken token;
  token.state_ = std::make_shared<State>();
  return token;
}

void CancelToken::Cancel() const {
  if (state_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (std::exchange(state_->cancelled, true)) return;
  for (const std::function<void()>* on_cancel : state_->watches) (*on_cancel)();
  state_->changed.notify_all();
}

bool CancelToken::cancelled() const {
  if (state_ == nullptr) return false;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->cancelled;
}

CancelWatch::CancelWatch(const CancelToken& token, std::function<void()> on_cancel)
    : state_(token.state_), on_cancel_(std::move(on_cancel)) {
  if (state_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->cancelled) {
    on_cancel_();
  } else {
    state_->watches.insert(&on_cancel_);
  }
}

CancelWatch::~CancelWatch() {
  if (state_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->watches.erase(&on_cancel_);
}

void CancelWatch::Sleep(const CancelToken& token, absl::Time until) {
  if (token.state_ == nullptr) return absl::SleepFor(until - absl::Now());
  std::unique_lock<std::mutex> lock(token.state_->mutex);
  token.state_->changed.wait_until(lock, absl::ToChronoTime(until),
                                   [&] { return token.state_->cancelled; });
}

}  // namespace annulus
