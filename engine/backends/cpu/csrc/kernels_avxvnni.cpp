#include <immintrin.h>

#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_avx2.inl"

#include "float_ops.inl"
#include "prefetch.inl"
#include "bytes_avx2.inl"
#include "integer_avxvnni.inl"
#include "ternary_by_rows.inl"
#include "dense_by_rows.inl"
#include "table.inl"

constexpr Kernels KERNELS = table("avxvnni", ternary);
}  // namespace

const Kernels* avxvnni_kernels() { return &KERNELS; }

}  // namespace bitskip
