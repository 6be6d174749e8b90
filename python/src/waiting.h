// How a call of Python's waits for the library: without the GIL, and on the main thread so that
// Ctrl-C ends it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "python/src/errors.h"
#include "python/src/gil.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// How long the last call of this thread spent in the library, seconds: what is more was Python's.
double LastSeconds();
void NoteSeconds(double seconds);

// Notes how long it lived.
class Timer {
 public:
  ~Timer() { NoteSeconds(absl::ToDoubleSeconds(absl::Now() - begin_)); }

 private:
  const absl::Time begin_ = absl::Now();
};

// The thread that signals come to: the one that imported the module.
bool OnMainThread();
void NoteMainThread();

// Starts a call by `start(done)` and waits for what `done` is called with. A signal whose handler
// raises calls `cancel`, which is to end the call, and what it raises goes on once the call has
// ended: nothing that the call reads goes before it. To be used with the GIL held.
template <typename Result, typename Start, typename Cancel>
absl::StatusOr<Result> WaitFor(Cancel cancel, Start start) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<absl::StatusOr<Result>> result;
  } shared;
  const absl::Status started = start([&shared](absl::StatusOr<Result> result) {
    const std::lock_guard<std::mutex> lock(shared.mutex);
    shared.result = std::move(result);
    shared.changed.notify_one();
  });
  if (!started.ok()) return started;
  std::optional<nb::python_error> raised;
  const auto done_within = [&shared](std::chrono::milliseconds wait) {
    std::unique_lock<std::mutex> lock(shared.mutex);
    return shared.changed.wait_for(lock, wait, [&] { return shared.result.has_value(); });
  };
  for (;;) {
    {
      const GilReleased released;
      if (done_within(std::chrono::milliseconds(50))) break;
    }
    if (raised.has_value() || PyErr_CheckSignals() == 0) continue;
    raised.emplace();
    cancel();
  }
  // `done` may hold the lock for a moment longer.
  const std::lock_guard<std::mutex> lock(shared.mutex);
  if (raised.has_value()) throw *std::move(raised);
  return *std::move(shared.result);
}

// A call that may take long: of the two members of Client the blocking one, or on the main thread
// the asynchronous one.
template <typename Result, typename Request, typename Call, typename Async>
absl::StatusOr<Result> RunLong(std::shared_ptr<Client> client, const Request& request,
                               const CallOptions& options, Call call, Async async) {
  const auto end = [&] { options.cancel.Cancel(); };
  const UnderWay under_way(end);
  if (!OnMainThread()) {
    return WithoutGil([&, client = std::move(client)] {
      const Timer timer;
      return ((*client).*call)(request, options);
    });
  }
  return WaitFor<Result>(end, [&](Completion<Result> done) {
    return ((*client).*async)(request, options, std::move(done));
  });
}

// The same of what has no asynchronous form: `run` returns a StatusOr<Result>.
template <typename Result, typename Run, typename Cancel>
absl::StatusOr<Result> RunApart(Run run, Cancel cancel) {
  const UnderWay under_way(cancel);
  if (!OnMainThread()) return WithoutGil(std::move(run));
  std::jthread thread;
  return WaitFor<Result>(cancel, [&](Completion<Result> done) {
    thread = std::jthread([&run, done = std::move(done)]() mutable { done(run()); });
    return absl::OkStatus();
  });
}
template <typename Result, typename Request, typename Call>
absl::StatusOr<Result> RunApart(std::shared_ptr<Client> client, const Request& request,
                                const CallOptions& options, Call call) {
  return RunApart<Result>(
      [&request, &options, call, client = std::move(client)] {
        return ((*client).*call)(request, options);
      },
      [&] { options.cancel.Cancel(); });
}

}  // namespace annulus::python
