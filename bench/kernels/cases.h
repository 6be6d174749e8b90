// The workloads of the kernel benchmark. Pure.
#pragma once

#include <string>
#include <vector>

#include "bench/kernels/kernel_case.h"

namespace annulus {

struct BenchCase {
  KernelShape shape;
  std::string peer_workload;  // as Peer::SetUp takes it; empty: no peer does it
};

std::vector<BenchCase> BenchCases();

}  // namespace annulus
