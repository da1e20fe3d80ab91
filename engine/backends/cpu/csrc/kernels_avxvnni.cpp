#include <immintrin.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_avx2.inl"

#include "float_ops.inl"
#include "bytes_avx2.inl"
#include "integer_avxvnni.inl"
#include "ternary_by_rows.inl"
#include "head_by_rows.inl"

constexpr Kernels KERNELS = {"avxvnni",         rms_norm,   quantise,      quantise_wide, swiglu,
                             attend,         store_half_row, store_int8_row, ternary,   nullptr,
                             head_int8,
                             head_float,     pack_head_row,  widen,     sum_exp,
                             max_of,         read};
}  // namespace

const Kernels* avxvnni_kernels() { return &KERNELS; }

}  // namespace bitskip
