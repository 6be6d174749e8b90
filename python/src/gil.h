// Which threads run this module's code, so that the interpreter's end finds none of them in the
// middle of it: Python before 3.14 ends a thread that asks for the GIL then, and a thread that is
// ended within C++ takes the process with it.
#pragma once

#include <functional>
#include <list>
#include <type_traits>
#include <utility>

#include "annulus/cancel_token.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// A thread within a function of the module. To be made and gone with the GIL held. Once calls have
// ended (EndCalls), any thread but the one that ended them waits here forever.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

// Lets go of the GIL, within Inside. Its end takes it again or, once calls have ended, waits
// forever.
class GilReleased {
 public:
  GilReleased();
  ~GilReleased();
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* const state_;
};

// Takes the GIL on a thread of the library's, for as long as it lives. False where calls have
// ended: then Python is not to be touched.
class GilTaken {
 public:
  GilTaken();
  ~GilTaken();
  GilTaken(const GilTaken&) = delete;
  GilTaken& operator=(const GilTaken&) = delete;
  explicit operator bool() const { return taken_; }

 private:
  bool taken_;
  PyGILState_STATE state_ = {};
};

// A call that EndCalls cancels. To be made and gone with the GIL held.
class UnderWay {
 public:
  explicit UnderWay(std::function<void()> cancel);
  ~UnderWay();
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;

 private:
  const std::list<std::function<void()>>::iterator place_;
};

// Runs work of the library, in which other threads of Python go on. What `work` holds is let go
// before the GIL is taken again.
template <typename Work>
auto WithoutGil(Work work) {
  const GilReleased released;
  Work mine = std::move(work);
  return mine();
}

// A function of the module, or a member of one of its types, run within Inside.
template <typename Result, typename... Args>
auto Within(Result (*function)(Args...)) {
  return [function](Args... args) -> Result {
    const Inside inside;
    return function(std::forward<Args>(args)...);
  };
}
template <typename Type, typename Result, typename... Args>
auto Within(Result (Type::*function)(Args...)) {
  return [function](Type& self, Args... args) -> Result {
    const Inside inside;
    return (self.*function)(std::forward<Args>(args)...);
  };
}
template <typename Type, typename Result, typename... Args>
auto Within(Result (Type::*function)(Args...) const) {
  return [function](const Type& self, Args... args) -> Result {
    const Inside inside;
    return (self.*function)(std::forward<Args>(args)...);
  };
}

// Adds _core.end_calls(seconds, has_other_threads), for when the interpreter is about to end:
// cancels the calls of all threads and waits for them, at most so long. This thread alone can make
// calls from then on.
void AddEndCalls(nb::module_& module);

}  // namespace annulus::python
