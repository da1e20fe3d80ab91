// Which instruction sets are compiled in, and which of them this machine has. BITSKIP_* says what
// kernels.cmake compiles.
#include "kernels.hpp"
#include "pages.hpp"
#include "timing.hpp"

#if defined(BITSKIP_AVXVNNI)
#include <cpuid.h>
#elif defined(BITSKIP_NEON)
#include <sys/auxv.h>
#endif

namespace bitskip {

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx2_lookup_kernels();
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

#if defined(BITSKIP_AVX2)
// Whether products by look-up are faster than by multiplication where AVX2 is all there is: they
// are if it multiplies at half width on one port, as the first Zen does. One row and four rows
// decide, decoding and verification.
bool lookups_pay() {
    constexpr int BLOCKS = 16, TILES = 4, ROWS = 4, WIDTH = BLOCKS * BLOCK;
    const Kernels& rows = *avx2_kernels();
    const Lookups& lookups = *avx2_lookup_kernels()->lookups;
    const Pages codes(TILES * TILE * WIDTH / 4, Pages::Size::small);
    const Pages x(ROWS * WIDTH, Pages::Size::small);
    const Pages tables(WIDTH * 16, Pages::Size::small);
    const Pages acc(ROWS * TILES * TILE * sizeof(int32_t), Pages::Size::small);
    const auto multiply = [&](int count) {
        return least_seconds([&] {
            rows.ternary(codes.as<uint8_t>(), BLOCKS, x.as<int8_t>(), WIDTH, count, 0,
                         TILES * TILE / QUAD, acc.as<int32_t>(), TILES * TILE);
        });
    };
    const double look_up = least_seconds([&] {
        lookups.by_digits(codes.as<uint8_t>(), BLOCKS, tables.as<int8_t>(), 0, TILES,
                          acc.as<int32_t>());
    });
    return (1 + ROWS) * look_up < multiply(1) + multiply(ROWS);
}
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
    {avx2_lookup_kernels(), has_avx2},
#endif
#if defined(BITSKIP_NEON)
    {neon_kernels(), has_neon_dotprod},
#endif
    {scalar_kernels(), [] { return true; }},
};
const int NUM_ISAS = sizeof(ISAS) / sizeof(ISAS[0]);

const Kernels& fastest_kernels(int first) {
    while (!ISAS[first].runs_here()) first++;
#if defined(BITSKIP_AVX2)
    if (ISAS[first].kernels == avx2_kernels() && lookups_pay()) return *avx2_lookup_kernels();
#endif
    return *ISAS[first].kernels;
}

}  // namespace bitskip
