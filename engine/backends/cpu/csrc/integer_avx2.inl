// The integer products on AVX2, by multiplication.

// GCC would delay the additions of unrolled work and spill what they wait for.
inline void keep_here(__m256i& x) { asm("" : "+x"(x)); }

// One output at a time over ROWS activation rows. Two products of a code and an activation are at
// most 2 · 2 · 127 = 508, so a 16-bit lane holds 64 such pairs, those of SPAN blocks, before it must
// be widened.
template <int ROWS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, SPAN = 16;
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    for (int quad = begin; quad < end; quad++) {
        __m256i wide[ROWS][QUAD] = {};
        for (int start = 0; start < blocks; start += SPAN) {
            const int stop = start + SPAN < blocks ? start + SPAN : blocks;
            for (int o = 0; o < QUAD; o++) {
                const uint8_t* w =
                    codes + ((ptrdiff_t(quad) * blocks + start) * QUAD + o) * BYTES;
                const int8_t* x = q + ptrdiff_t(start) * BLOCK;
                __m256i narrow[ROWS];
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++) narrow[m] = _mm256_setzero_si256();
                for (int b = start; b < stop; b++, w += QUAD * BYTES, x += BLOCK) {
                    prefetch<ROWS>(w);
                    const __m256i v = load_bytes(w);
#pragma GCC unroll 4
                    for (int quarter = 0; quarter < 4; quarter++) {
                        const __m256i weights = _mm256_and_si256(
                            quarter ? _mm256_srli_epi16(v, 2 * quarter) : v, three);
#pragma GCC unroll 8
                        for (int m = 0; m < ROWS; m++) {
                            const __m256i pairs = _mm256_maddubs_epi16(
                                weights, load_bytes(x + m * q_stride + quarter * BYTES));
                            narrow[m] = _mm256_add_epi16(narrow[m], pairs);
                            if (ROWS >= 4) keep_here(narrow[m]);
                        }
                    }
                }
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++)
                    wide[m][o] = _mm256_add_epi32(wide[m][o], _mm256_madd_epi16(narrow[m], ones));
            }
        }
        for (int m = 0; m < ROWS; m++)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(acc + m * acc_stride + quad * QUAD),
                             sum_four(wide[m]));
    }
}

// |x| ≤ 8191 and |w| ≤ 127: a pair is below 2²², and the sum of all fits 32 bits by the choice of
// the limit of x.
template <int ROWS>
void dense_int8_rows(const int8_t* w, const float* w_scale, int n, int begin, int end,
                    const int16_t* x, ptrdiff_t x_stride, const float* x_scale, float* logits,
                    ptrdiff_t logits_stride) {
    constexpr int LINE = 64;
    for (int v = begin; v < end; v++) {
        const int8_t* weight = w + ptrdiff_t(v) * n;
        __m256i sums[ROWS];
        for (int m = 0; m < ROWS; m++) sums[m] = _mm256_setzero_si256();
        const auto add = [&](int i) {
            const __m256i wide = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i)));
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; m++)
                sums[m] = _mm256_add_epi32(
                    sums[m], _mm256_madd_epi16(wide, load_bytes(x + m * x_stride + i)));
        };
        int i = 0;
        for (; i + LINE <= n; i += LINE) {
            prefetch<ROWS>(weight + i);
            if (ROWS <= 2) {
                add(i), add(i + LANES), add(i + 2 * LANES), add(i + 3 * LANES);
            } else {  // unrolled, the products of more rows would not fit the registers
#pragma GCC unroll 1
                for (int k = 0; k < LINE; k += LANES) add(i + k);
            }
        }
        for (; i < n; i += LANES) add(i);
        for (int m = 0; m < ROWS; m++)
            logits[m * logits_stride + v - begin] =
                float(sum_lanes(sums[m])) * (x_scale[m] * w_scale[v]);
    }
}
