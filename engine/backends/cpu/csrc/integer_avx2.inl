// The integer kernels on AVX2.

// One output at a time over ROWS activation rows. A product pair is at most 2 · 127 · 2 = 508, so
// an int16 lane holds 64 of them, 16 blocks, before it must be widened.
template <int ROWS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, WIDEN = 16, AHEAD = 1024;
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    for (int o = begin * QUAD; o < end * QUAD; o++) {
        const uint8_t* w = codes + ptrdiff_t(o / QUAD) * blocks * QUAD * BYTES + o % QUAD * BYTES;
        __m256i wide[ROWS];
        for (int m = 0; m < ROWS; m++) wide[m] = _mm256_setzero_si256();
        for (int start = 0; start < blocks; start += WIDEN) {
            const int stop = start + WIDEN < blocks ? start + WIDEN : blocks;
            __m256i sums[ROWS];
            for (int m = 0; m < ROWS; m++) sums[m] = _mm256_setzero_si256();
            for (int b = start; b < stop; b++, w += QUAD * BYTES) {
                __builtin_prefetch(w + AHEAD);
                const __m256i v = load_bytes(w);
                const __m256i w0 = _mm256_and_si256(v, three);
                const __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(v, 2), three);
                const __m256i w2 = _mm256_and_si256(_mm256_srli_epi16(v, 4), three);
                const __m256i w3 = _mm256_and_si256(_mm256_srli_epi16(v, 6), three);
                for (int m = 0; m < ROWS; m++) {
                    const int8_t* x = q + m * q_stride + b * BLOCK;
                    const __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(w0, load_bytes(x)),
                                                         _mm256_maddubs_epi16(w1, load_bytes(x + 32)));
                    const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(w2, load_bytes(x + 64)),
                                                          _mm256_maddubs_epi16(w3, load_bytes(x + 96)));
                    sums[m] = _mm256_add_epi16(sums[m], _mm256_add_epi16(low, high));
                }
            }
            for (int m = 0; m < ROWS; m++)
                wide[m] = _mm256_add_epi32(wide[m], _mm256_madd_epi16(sums[m], ones));
        }
        for (int m = 0; m < ROWS; m++) acc[m * acc_stride + o] = sum_lanes(wide[m]);
    }
}

// |x| ≤ 8191 and |w| ≤ 127: a pair is below 2²², and the sum of all fits 32 bits by the choice of
// the limit of x.
template <int ROWS>
void head_int8_rows(const int8_t* w, const float* w_scale, int n, int begin, int end,
                    const int16_t* x, ptrdiff_t x_stride, const float* x_scale, float* logits,
                    ptrdiff_t logits_stride) {
    constexpr int AHEAD = 1024;
    for (int v = begin; v < end; v++) {
        const int8_t* weight = w + ptrdiff_t(v) * n;
        __m256i sums[ROWS];
        for (int m = 0; m < ROWS; m++) sums[m] = _mm256_setzero_si256();
        for (int i = 0; i < n; i += LANES) {
            if (i % 64 == 0) __builtin_prefetch(weight + i + AHEAD);
            const __m256i wide = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i)));
            for (int m = 0; m < ROWS; m++)
                sums[m] = _mm256_add_epi32(
                    sums[m], _mm256_madd_epi16(wide, load_bytes(x + m * x_stride + i)));
        }
        for (int m = 0; m < ROWS; m++)
            logits[m * logits_stride + v - begin] =
                float(sum_lanes(sums[m])) * (x_scale[m] * w_scale[v]);
    }
}
