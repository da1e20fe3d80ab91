#include <immintrin.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_avx2.inl"

#include "float_ops.inl"
#include "prefetch.inl"
#include "bytes_avx2.inl"
#include "integer_avx2.inl"
#include "ternary_by_rows.inl"
#include "dense_by_rows.inl"
#include "lookup_avx2.inl"
#include "table.inl"

constexpr Kernels KERNELS = table("avx2", ternary);
constexpr Kernels LOOKUP_KERNELS = table("avx2-lookup", nullptr, &LOOKUPS);
}  // namespace

const Kernels* avx2_kernels() { return &KERNELS; }
const Kernels* avx2_lookup_kernels() { return &LOOKUP_KERNELS; }

}  // namespace bitskip
