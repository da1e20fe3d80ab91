// Stands in for the compiler's header of the same name: AVX-512 and AVX-VNNI by SIMDe, on a machine
// that has AVX2. What SIMDe 0.7.4 lacks is made of AVX2 halves here.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace emulated {

inline __m512 join(__m256 low, __m256 high) {
    simde__m512_private r;
    r.m256[0] = low;
    r.m256[1] = high;
    return simde__m512_from_private(r);
}
inline __m512i join(__m256i low, __m256i high) {
    simde__m512i_private r;
    r.m256i[0] = low;
    r.m256i[1] = high;
    return simde__m512i_from_private(r);
}
inline __m256 half(__m512 a, int i) { return simde__m512_to_private(a).m256[i]; }
inline __m256i half(__m512i a, int i) { return simde__m512i_to_private(a).m256i[i]; }

inline __m512i cvttps_epi32(__m512 a) {
    return join(_mm256_cvttps_epi32(half(a, 0)), _mm256_cvttps_epi32(half(a, 1)));
}
inline __m512 cvtepi32_ps(__m512i a) {
    return join(_mm256_cvtepi32_ps(half(a, 0)), _mm256_cvtepi32_ps(half(a, 1)));
}
inline __m512i cvtepi8_epi32(__m128i a) {
    return join(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
}
inline __m512i cvtepu16_epi32(__m256i a) {
    return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
                _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}
inline __m512 cvtph_ps(__m256i a) {
    return join(_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
template <int ROUNDING>
__m256i cvtps_ph(__m512 a) {
    return _mm256_set_m128i(_mm256_cvtps_ph(half(a, 1), ROUNDING),
                            _mm256_cvtps_ph(half(a, 0), ROUNDING));
}
// Truncating, as the instructions do.
template <class Wide, class Narrow>
Wide narrowed(__m512i a, Narrow) {
    int32_t in[16];
    Narrow out[16];
    _mm512_storeu_si512(in, a);
    for (int i = 0; i < 16; i++) out[i] = Narrow(in[i]);
    Wide r;
    static_assert(sizeof r == sizeof out, "all of it");
    __builtin_memcpy(&r, out, sizeof r);
    return r;
}

}  // namespace emulated

#ifndef _mm512_permute_ps
#define _mm512_permute_ps(a, control)                                              \
    emulated::join(_mm256_permute_ps(emulated::half(a, 0), control),               \
                   _mm256_permute_ps(emulated::half(a, 1), control))
#endif
#ifndef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, control) simde_mm512_shuffle_f32x4(a, b, control)
#endif
#ifndef _mm512_cvttps_epi32
#define _mm512_cvttps_epi32(a) emulated::cvttps_epi32(a)
#endif
#ifndef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(a) emulated::cvtepi32_ps(a)
#endif
#ifndef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(a) emulated::cvtepi8_epi32(a)
#endif
#ifndef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(a) emulated::cvtepu16_epi32(a)
#endif
#ifndef _mm512_cvtph_ps
#define _mm512_cvtph_ps(a) emulated::cvtph_ps(a)
#endif
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(a, rounding) emulated::cvtps_ph<rounding>(a)
#ifndef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(a) emulated::narrowed<__m128i>(a, int8_t())
#endif
#ifndef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(a) emulated::narrowed<__m256i>(a, int16_t())
#endif
#ifndef _mm512_zextsi256_si512
#define _mm512_zextsi256_si512(a) emulated::join(a, _mm256_setzero_si256())
#endif
// AVX-VNNI's are AVX-512VL's by another encoding.
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(src, a, b) simde_mm256_dpbusd_epi32(src, a, b)
#undef _mm256_dpwssd_avx_epi32
#define _mm256_dpwssd_avx_epi32(src, a, b) simde_mm256_dpwssd_epi32(src, a, b)
