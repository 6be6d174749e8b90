#include "python/src/gil.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace annulus::python {
namespace {

using Cancels = std::list<std::function<void()>>;

std::atomic<int> inside = 0;  // threads within the module, with the GIL or without
std::atomic<bool> ended = false;
std::thread::id ender;             // written before `ended`
Cancels* cancels = new Cancels();  // changed with the GIL held; outlives every thread

bool IsToStay() {
  return ended && std::this_thread::get_id() != ender;
}

// As Python itself lets such threads be since 3.14.
[[noreturn]] void StayForever() {
  --inside;
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// A child that was forked has one thread, which came from Python.
void ForgetOtherThreads() {
  inside = 0;
  cancels = new Cancels();
}

void EndCalls(double seconds, bool has_other_threads) {
  // What other threads hold is never let go of, which is no leak of the module's.
  if (has_other_threads) nb::set_leak_warnings(false);
  ender = std::this_thread::get_id();
  ended = true;
  for (const std::function<void()>& cancel : *cancels) cancel();
  // A thread that was about to take the GIL takes it meanwhile, and leaves.
  const nb::gil_scoped_release release;
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (inside > 0 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

Inside::Inside() {
  ++inside;
  if (!IsToStay()) return;
  PyEval_SaveThread();
  StayForever();
}

Inside::~Inside() {
  --inside;
}

GilReleased::GilReleased() : state_(PyEval_SaveThread()) {}

GilReleased::~GilReleased() {
  if (IsToStay()) StayForever();
  PyEval_RestoreThread(state_);
}

GilTaken::GilTaken() {
  ++inside;
  taken_ = !ended;
  if (taken_) state_ = PyGILState_Ensure();
}

GilTaken::~GilTaken() {
  if (taken_) PyGILState_Release(state_);
  --inside;
}

UnderWay::UnderWay(std::function<void()> cancel)
    : place_(cancels->insert(cancels->end(), std::move(cancel))) {
  if (IsToStay()) (*place_)();
}

UnderWay::~UnderWay() {
  cancels->erase(place_);
}

void AddEndCalls(nb::module_& module) {
  pthread_atfork(nullptr, nullptr, &ForgetOtherThreads);
  module.def("end_calls", &EndCalls);
}

}  // namespace annulus::python
