// The workloads of the kernel benchmark. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/kernels/kernel_case.h"

namespace annulus {

struct BenchCase {
  KernelShape shape;
  std::string peer_workload;          // as Peer::SetUp takes it; empty: no peer does it
  std::optional<KernelShape> beside;  // of as much work, run in turn with it
};

std::vector<BenchCase> BenchCases();

}  // namespace annulus
