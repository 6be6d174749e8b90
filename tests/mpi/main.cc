// The contract suites of tests/comm between real processes:
//   mpirun -np N test_mpi PIECE_BYTES [Catch2's arguments]
// All ranks run the same cases in the same order. Rank 0 speaks for all: it learns what failed in
// others.
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#endif
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "tests/mpi/mpi_group.h"

int main(int argc, char** argv) {
  annulus::MpiOptions options;
  if (argc > 1) options.piece_bytes = std::strtoull(argv[1], nullptr, 10);
  auto session = annulus::MpiSession::Start(options);
  if (!session.ok()) {
    std::cerr << session.status() << std::endl;
    return 1;
  }
  annulus::SetMpiSession(session->get());
  if ((*session)->rank() != 0 && std::freopen("/dev/null", "w", stdout) == nullptr) return 1;
  // Catch2 takes the place of its name from PIECE_BYTES.
  return argc > 1 ? Catch::Session().run(argc - 1, argv + 1) : Catch::Session().run(argc, argv);
}
