// `annulus_bench`: plans measured over the ranks that mpirun started, checked, and reported by
// rank 0.
#pragma once

#include <string>
#include <vector>

namespace annulus {

// `args` without the program's name. Returns the exit status: 0; 2 for bad usage; 1 if a row is
// wrong, bytes are not the plan's, or anything failed.
int RunPlans(const std::vector<std::string>& args);

}  // namespace annulus
