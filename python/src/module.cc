// annulus._core: the library under the Python package. The package is what people use.
#include <thread>

#include "python/src/answer.h"
#include "python/src/arrays.h"
#include "python/src/client.h"
#include "python/src/functions.h"
#include "python/src/gil.h"
#include "python/src/head_table.h"
#include "python/src/key_list.h"
#include "python/src/nanobind.h"
#include "python/src/waiting.h"

namespace annulus::python {
namespace {

std::thread::id main_thread;
thread_local double last_seconds = 0;

}  // namespace

bool OnMainThread() {
  return std::this_thread::get_id() == main_thread;
}

double LastSeconds() {
  return last_seconds;
}

void NoteSeconds(double seconds) {
  last_seconds = seconds;
}

void NoteMainThread() {
  main_thread = std::this_thread::get_id();
}

}  // namespace annulus::python

NB_MODULE(_core, module) {
  annulus::python::NoteMainThread();
  annulus::python::ImportNumpy();
  annulus::python::AddAnswer(module);
  annulus::python::AddHeadTable(module);
  annulus::python::AddKeyList(module);
  annulus::python::AddClient(module);
  annulus::python::AddFunctions(module);
  annulus::python::AddEndCalls(module);
  module.def("last_seconds", &annulus::python::LastSeconds);
}
