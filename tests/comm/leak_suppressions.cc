// UCX 1.13 loses a table of some 100 bytes when it cannot attach to the shared memory of a process
// that is gone. The leak sanitizer reads this by its name.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libuct.so\n";
}
