#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_scalar.inl"

#include "float_ops.inl"
#include "integer_scalar.inl"

constexpr Kernels KERNELS = {"scalar",       rms_norm,   quantise,      quantise_wide, swiglu,
                             attend,         store_half_row, store_int8_row, ternary,   nullptr,
                             head_int8,
                             head_float,     pack_head_row,  widen,     sum_exp,
                             max_of,         read};
}  // namespace

const Kernels* scalar_kernels() { return &KERNELS; }

}  // namespace bitskip
