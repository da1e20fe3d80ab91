// The integer kernels on AVX-512 with VNNI, whose instructions add four products of bytes, or two
// of 16-bit words, to a 32-bit lane without saturation: nothing needs widening on the way.

inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline __m256i load_half_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Σ of the 32-bit lanes of a's and b's halves: a low, a high, b low, b high.
inline __m128i sum_halves(__m512i a, __m512i b) {
    const __m256i pairs_a =
        _mm256_hadd_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    const __m256i pairs_b =
        _mm256_hadd_epi32(_mm512_castsi512_si256(b), _mm512_extracti64x4_epi64(b, 1));
    const __m256i fours = _mm256_hadd_epi32(pairs_a, pairs_b);
    return _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
}

// A quad at a time over ROWS activation rows: its 128 bytes of a block are two registers, each with
// two outputs' 32 bytes, and meet a quarter of the block's inputs in both halves. The four quarters
// go to as many sums as it takes to hide an instruction's latency.
template <int ROWS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, CHAINS = ROWS == 1 ? 4 : ROWS <= 4 ? 2 : 1;
    const __m512i three = _mm512_set1_epi8(3);
    for (int quad = begin; quad < end; quad++) {
        const uint8_t* w = codes + ptrdiff_t(quad) * blocks * QUAD * BYTES;
        __m512i low[ROWS][CHAINS], high[ROWS][CHAINS];
        for (int m = 0; m < ROWS; m++)
            for (int c = 0; c < CHAINS; c++) low[m][c] = high[m][c] = _mm512_setzero_si512();
        for (int b = 0; b < blocks; b++, w += QUAD * BYTES) {
            prefetch<ROWS>(w);
            prefetch<ROWS>(w + 64);
            const __m512i u = load_bytes(w), v = load_bytes(w + 64);
            const auto add = [&](int quarter, __m512i codes_low, __m512i codes_high) {
                const __m512i w_low = _mm512_and_si512(codes_low, three);
                const __m512i w_high = _mm512_and_si512(codes_high, three);
                const int8_t* from = q + b * BLOCK + quarter * BYTES;
                const int c = quarter % CHAINS;
                for (int m = 0; m < ROWS; m++) {
                    const __m512i x = _mm512_broadcast_i64x4(load_half_bytes(from + m * q_stride));
                    low[m][c] = _mm512_dpbusd_epi32(low[m][c], w_low, x);
                    high[m][c] = _mm512_dpbusd_epi32(high[m][c], w_high, x);
                }
            };
            add(0, u, v);
            add(1, _mm512_srli_epi16(u, 2), _mm512_srli_epi16(v, 2));
            add(2, _mm512_srli_epi16(u, 4), _mm512_srli_epi16(v, 4));
            add(3, _mm512_srli_epi16(u, 6), _mm512_srli_epi16(v, 6));
        }
        for (int m = 0; m < ROWS; m++) {
            for (int c = 1; c < CHAINS; c++) {
                low[m][0] = _mm512_add_epi32(low[m][0], low[m][c]);
                high[m][0] = _mm512_add_epi32(high[m][0], high[m][c]);
            }
            _mm_storeu_si128(reinterpret_cast<__m128i*>(acc + m * acc_stride + quad * QUAD),
                             sum_halves(low[m][0], high[m][0]));
        }
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
        __m512i sums[ROWS][CHAINS];
        for (int m = 0; m < ROWS; m++)
            for (int c = 0; c < CHAINS; c++) sums[m][c] = _mm512_setzero_si512();
        const auto add = [&](int chain, int i) {
            const __m512i wide = _mm512_cvtepi8_epi16(load_half_bytes(weight + i));
            for (int m = 0; m < ROWS; m++)
                sums[m][chain] = _mm512_dpwssd_epi32(sums[m][chain], wide,
                                                     load_bytes(x + m * x_stride + i));
        };
        int i = 0;
        for (; i + 64 <= n; i += 64) {
            prefetch<ROWS>(weight + i);
            add(0, i);
            add(CHAINS - 1, i + 32);
        }
        if (i + 32 <= n) {
            add(0, i);
            i += 32;
        }
        if (i < n) {  // n is a multiple of 16: half a register is left
            const __m512i wide = _mm512_zextsi256_si512(_mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i))));
            for (int m = 0; m < ROWS; m++)
                sums[m][0] = _mm512_dpwssd_epi32(
                    sums[m][0], wide, _mm512_zextsi256_si512(load_half_bytes(x + m * x_stride + i)));
        }
        for (int m = 0; m < ROWS; m++) {
            const __m512i other = CHAINS > 1 ? sums[m][CHAINS - 1] : _mm512_setzero_si512();
            const __m128i four = sum_halves(sums[m][0], other);
            const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
            const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
            logits[m * logits_stride + v - begin] = float(sum) * (x_scale[m] * w_scale[v]);
        }
    }
}
