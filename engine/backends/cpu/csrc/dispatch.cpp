// Which instruction sets are compiled in, and which of them this machine has.
#include "kernels.hpp"

namespace bitskip {

const Kernels* scalar_kernels();
#if defined(__x86_64__)
const Kernels* avx2_kernels();
#endif

const Isa ISAS[] = {
#if defined(__x86_64__)
    {avx2_kernels(), [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
     }},
#endif
    {scalar_kernels(), [] { return true; }},
};
const int NUM_ISAS = sizeof(ISAS) / sizeof(ISAS[0]);

}  // namespace bitskip
