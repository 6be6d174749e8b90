// Where bytes lie: in memory that this process reads and writes, or in that of a GPU.
#pragma once

namespace annulus {

enum class MemoryKind { kHost, kDevice };

}  // namespace annulus
