// `annulus_bench --kernels`: the CPU backend beside what this machine can do at most, and beside
// PyTorch where it is there, all in one run.
#pragma once

namespace annulus {

// argv as main has it, without --kernels. Returns the exit status: 0, or 2 for bad usage.
int RunKernels(int argc, char** argv);

}  // namespace annulus
