// The integer kernels on AVX-VNNI, whose instructions add four products of bytes, or two of 16-bit
// words, to a 32-bit lane without saturation: nothing needs widening on the way.

// One output at a time over ROWS activation rows. The four quarters of a block go to as many sums
// as it takes to hide an instruction's latency.
template <int ROWS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, CHAINS = ROWS <= 3 ? 4 : ROWS <= 6 ? 2 : 1;
    const __m256i three = _mm256_set1_epi8(3);
    for (int quad = begin; quad < end; quad++) {
        __m256i totals[ROWS][QUAD];
        for (int o = 0; o < QUAD; o++) {
            const uint8_t* w = codes + (ptrdiff_t(quad) * blocks * QUAD + o) * BYTES;
            __m256i sums[ROWS][CHAINS];
            for (int m = 0; m < ROWS; m++)
                for (int c = 0; c < CHAINS; c++) sums[m][c] = _mm256_setzero_si256();
            for (int b = 0; b < blocks; b++, w += QUAD * BYTES) {
                prefetch<ROWS>(w);
                const __m256i v = load_bytes(w);
                const auto add = [&](int quarter, __m256i shifted) {
                    const __m256i weights = _mm256_and_si256(shifted, three);
                    const int8_t* from = q + b * BLOCK + quarter * BYTES;
                    const int c = quarter % CHAINS;
                    for (int m = 0; m < ROWS; m++)
                        sums[m][c] = _mm256_dpbusd_avx_epi32(sums[m][c], weights,
                                                             load_bytes(from + m * q_stride));
                };
                add(0, v);
                add(1, _mm256_srli_epi16(v, 2));
                add(2, _mm256_srli_epi16(v, 4));
                add(3, _mm256_srli_epi16(v, 6));
            }
            for (int m = 0; m < ROWS; m++) {
                totals[m][o] = sums[m][0];
                for (int c = 1; c < CHAINS; c++)
                    totals[m][o] = _mm256_add_epi32(totals[m][o], sums[m][c]);
            }
        }
        for (int m = 0; m < ROWS; m++)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(acc + m * acc_stride + quad * QUAD),
                             sum_four(totals[m]));
    }
}

// The sum of all products fits 32 bits by the choice of the limit of x.
template <int ROWS>
void dense_int8_rows(const int8_t* w, const float* w_scale, int n, int begin, int end,
                    const int16_t* x, ptrdiff_t x_stride, const float* x_scale, float* logits,
                    ptrdiff_t logits_stride) {
    constexpr int CHAINS = ROWS <= 5 ? 2 : 1;
    for (int v = begin; v < end; v++) {
        const int8_t* weight = w + ptrdiff_t(v) * n;
        __m256i sums[ROWS][CHAINS];
        for (int m = 0; m < ROWS; m++)
            for (int c = 0; c < CHAINS; c++) sums[m][c] = _mm256_setzero_si256();
        const auto add = [&](int chain, int i) {
            const __m256i wide = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i)));
            for (int m = 0; m < ROWS; m++)
                sums[m][chain] = _mm256_dpwssd_avx_epi32(sums[m][chain], wide,
                                                         load_bytes(x + m * x_stride + i));
        };
        int i = 0;
        for (; i + 32 <= n; i += 32) {
            if (i % 64 == 0) prefetch<ROWS>(weight + i);
            add(0, i);
            add(CHAINS - 1, i + 16);
        }
        if (i < n) add(0, i);
        for (int m = 0; m < ROWS; m++) {
            __m256i sum = sums[m][0];
            if (CHAINS > 1) sum = _mm256_add_epi32(sum, sums[m][CHAINS - 1]);
            logits[m * logits_stride + v - begin] =
                float(sum_lanes(sum)) * (x_scale[m] * w_scale[v]);
        }
    }
}
