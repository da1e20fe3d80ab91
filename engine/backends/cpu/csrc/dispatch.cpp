// Which instruction sets are compiled in, and which of them this machine has. BITSKIP_* says what
// kernels.cmake compiles.
#include "kernels.hpp"

#if defined(BITSKIP_AVXVNNI)
#include <cpuid.h>
#elif defined(BITSKIP_NEON)
#include <sys/auxv.h>
#endif

namespace bitskip {

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* neon_kernels();

namespace {

#if defined(BITSKIP_AVX2)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}
#endif

#if defined(BITSKIP_AVXVNNI)
// Not every compiler that compiles for it knows it by a name of __builtin_cpu_supports.
bool has_avxvnni() {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

#if defined(BITSKIP_AVX512VNNI)
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(BITSKIP_NEON)
bool has_neon_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#endif

}  // namespace

const Isa ISAS[] = {
#if defined(BITSKIP_AVX512VNNI)
    {avx512vnni_kernels(), has_avx512vnni},
#endif
#if defined(BITSKIP_AVXVNNI)
    {avxvnni_kernels(), has_avxvnni},
#endif
#if defined(BITSKIP_AVX2)
    {avx2_kernels(), has_avx2},
#endif
#if defined(BITSKIP_NEON)
    {neon_kernels(), has_neon_dotprod},
#endif
    {scalar_kernels(), [] { return true; }},
};
const int NUM_ISAS = sizeof(ISAS) / sizeof(ISAS[0]);

}  // namespace bitskip
