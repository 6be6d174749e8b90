// The MPI job that this test program is a rank of. Main thread only.
#pragma once

#include "comm/mpi/mpi_session.h"
#include "tests/comm/exchange_group.h"

namespace annulus {

// It outlives all cases.
void SetMpiSession(MpiSession* session);
MpiSession& TheMpiSession();

}  // namespace annulus
