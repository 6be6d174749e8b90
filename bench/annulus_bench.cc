// annulus_bench: `mpirun -np N annulus_bench …` measures plans over ranks (bench/plans);
// `annulus_bench --kernels …` measures the kernels of this machine (bench/kernels).
#include <cstring>
#include <string>
#include <vector>

#include "bench/kernels/kernels.h"
#include "bench/plans/plans.h"
#include "comm/ucx/ucx_signals.h"

ANNULUS_HOLD_SIGNALS_EARLY;

int main(int argc, char** argv) {
  annulus::GiveBackSignals();
  if (argc > 1 && std::strcmp(argv[1], "--kernels") == 0) {
    argv[1] = argv[0];
    return annulus::RunKernels(argc - 1, argv + 1);
  }
  return annulus::RunPlans(std::vector<std::string>(argv + 1, argv + argc));
}
