#include <immintrin.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_avx2.inl"

#include "float_ops.inl"
#include "bytes_avx2.inl"
#include "integer_avx2.inl"
#include "head_by_rows.inl"
#include "lookup_avx2.inl"

constexpr Kernels KERNELS = {"avx2",         rms_norm,   quantise,      quantise_wide, swiglu,
                             attend,         store_half_row, store_int8_row, nullptr,   &LOOKUPS,
                             head_int8,
                             head_float,     pack_head_row,  widen,     sum_exp,
                             max_of,         read};
}  // namespace

const Kernels* avx2_kernels() { return &KERNELS; }

}  // namespace bitskip
