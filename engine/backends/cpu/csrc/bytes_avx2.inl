// Bytes and integer lanes in AVX2 registers: what its integer kernels share with AVX-VNNI's.

inline int32_t sum_lanes(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

inline __m256i load_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

uint64_t read(const uint8_t* data, size_t bytes) {
    __m256i sums[4] = {};
    for (size_t i = 0; i + 128 <= bytes; i += 128)
        for (int k = 0; k < 4; k++) sums[k] = _mm256_add_epi64(sums[k], load_bytes(data + i + 32 * k));
    const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]),
                                         _mm256_add_epi64(sums[2], sums[3]));
    return uint64_t(_mm256_extract_epi64(sum, 0)) + uint64_t(_mm256_extract_epi64(sum, 1)) +
           uint64_t(_mm256_extract_epi64(sum, 2)) + uint64_t(_mm256_extract_epi64(sum, 3));
}
