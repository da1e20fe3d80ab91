// Sixteen float lanes as one AVX-512 register.
//
// Compared with the scalar lanes, bit for bit, by tests/backends/cpu/native/isa_compare.cpp under
// emulation (SIMDe on AVX2). Not run on hardware.

using Lanes = __m512;
using Bits = __m512i;

constexpr int DOT_PRODUCTS = 16;  // that the registers hold side by side

inline Lanes set1(float x) { return _mm512_set1_ps(x); }
inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes sub(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes div(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes max(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes min(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
inline Lanes round_even(Lanes a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Lanes keep_from(Lanes x, float limit, Lanes value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), value);
}
inline Lanes power_of_two(Lanes n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}

template <int H>
inline Lanes butterfly(Lanes a) {
    constexpr __mmask16 UPPER = H == 1 ? 0xaaaa : H == 2 ? 0xcccc : H == 4 ? 0xf0f0 : 0xff00;
    const Lanes other = H == 1   ? _mm512_permute_ps(a, 0xb1)
                        : H == 2 ? _mm512_permute_ps(a, 0x4e)
                        : H == 4 ? _mm512_shuffle_f32x4(a, a, 0xb1)
                                 : _mm512_shuffle_f32x4(a, a, 0x4e);
    return _mm512_mask_sub_ps(_mm512_add_ps(a, other), UPPER, other, a);
}

inline Bits no_bits() { return _mm512_setzero_si512(); }
inline Bits max_magnitude(Bits a, Lanes x) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epi32(a, _mm512_and_si512(_mm512_castps_si512(x), mask));
}
inline float reduce_magnitude(Bits a) {
    const __m256i eight =
        _mm256_max_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

inline __m256 low_half(Lanes a) { return _mm512_castps512_ps256(a); }
inline __m256 high_half(Lanes a) {
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}
inline float reduce_add(Lanes a) {
    const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float reduce_max(Lanes a) {
    const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline __m256i load_16_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Lanes load_half(const uint16_t* p) { return _mm512_cvtph_ps(load_16_words(p)); }
inline void store_half(uint16_t* p, Lanes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Lanes load_bfloat(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16_words(p)), 16));
}
inline Lanes load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_int8(int8_t* p, Lanes a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(a)));
}
inline void store_int16(int16_t* p, Lanes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(a)));
}
