#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own header: what it leaves undefined is never used (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_avx512.inl"

#include "float_ops.inl"
#include "integer_avx512vnni.inl"
#include "ternary_by_rows.inl"
#include "head_by_rows.inl"

constexpr Kernels KERNELS = {"avx512vnni",         rms_norm,   quantise,      quantise_wide, swiglu,
                             attend,         store_half_row, store_int8_row, ternary,   nullptr,
                             head_int8,
                             head_float,     pack_head_row,  widen,     sum_exp,
                             max_of,         read};
}  // namespace

const Kernels* avx512vnni_kernels() { return &KERNELS; }

}  // namespace bitskip
