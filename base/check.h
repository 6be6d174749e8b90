// ANNULUS_CHECK guards against our own bugs (never against bad input): it prints where and what
// and aborts, in every build type.
#pragma once

#include <cstdio>
#include <cstdlib>

#define ANNULUS_CHECK(condition)                                                         \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
