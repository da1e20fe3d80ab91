#include <arm_neon.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_neon.inl"

#include "float_ops.inl"
#include "integer_neon.inl"
#include "ternary_by_rows.inl"
#include "head_by_rows.inl"

constexpr Kernels KERNELS = {"neon",         rms_norm,   quantise,      quantise_wide, swiglu,
                             attend,         store_half_row, store_int8_row, ternary,   nullptr,
                             head_int8,
                             head_float,     pack_head_row,  widen,     sum_exp,
                             max_of,         read};
}  // namespace

const Kernels* neon_kernels() { return &KERNELS; }

}  // namespace bitskip
