#include <arm_neon.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_neon.inl"

#include "float_ops.inl"
#include "integer_neon.inl"
#include "ternary_by_rows.inl"
#include "dense_by_rows.inl"
#include "table.inl"

constexpr Kernels KERNELS = table("neon", ternary);
}  // namespace

const Kernels* neon_kernels() { return &KERNELS; }

}  // namespace bitskip
