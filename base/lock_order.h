// Of Abseil's locks, which gRPC's are too: Abseil that was built without NDEBUG, as Debian's is,
// notes for each lock which others were held when it was taken, in a graph of the whole process.
// It grows as connections come and go, and a cycle in it ends the process.
#pragma once

namespace annulus {

// For programs: nothing is noted from now on. To be called before there are threads.
void ForgetLockOrder();

}  // namespace annulus
