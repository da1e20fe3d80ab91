#include "kernels.hpp"

namespace bitskip {
namespace {
#include "lanes_scalar.inl"

#include "float_ops.inl"
#include "integer_scalar.inl"
#include "table.inl"

constexpr Kernels KERNELS = table("scalar", ternary);
}  // namespace

const Kernels* scalar_kernels() { return &KERNELS; }

}  // namespace bitskip
