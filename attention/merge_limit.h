// Where merging ends: a plain constant, for host and device code.
#pragma once

namespace annulus {

// A merge weighs its sides by exp of their lse, and f32 rounds an lse by up to |lse|·2⁻²⁴. Where
// (the smaller weight)·|lse| is larger than this, an answer could be off by more than 2⁻¹¹, and the
// row has none.
inline constexpr float kMergeLseMax = 4096;

}  // namespace annulus
