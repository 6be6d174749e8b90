#include "annulus/buffer.h"

#include "base/memory.h"

namespace annulus {

Buffer::Buffer(size_t size_bytes) : data_(AllocateMemory(size_bytes)), size_bytes_(size_bytes) {}

}  // namespace annulus
