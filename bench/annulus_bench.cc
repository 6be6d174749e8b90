// annulus_bench: `--kernels` measures the kernels of this machine.
#include <cstring>

#include "bench/kernels/kernels.h"

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--kernels") == 0) {
    argv[1] = argv[0];
    return annulus::RunKernels(argc - 1, argv + 1);
  }
  return 2;
}
