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
#include "prefetch.inl"
#include "integer_avx512vnni.inl"
#include "ternary_by_rows.inl"
#include "dense_by_rows.inl"
#include "table.inl"

constexpr Kernels KERNELS = table("avx512vnni", ternary);
}  // namespace

const Kernels* avx512vnni_kernels() { return &KERNELS; }

}  // namespace bitskip
