#include "bench/kernels/kernels.h"

int main(int argc, char** argv) {
  return annulus::RunKernels(argc, argv);
}
