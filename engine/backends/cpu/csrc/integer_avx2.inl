// The head's integer product on AVX2.

// |x| ≤ 8191 and |w| ≤ 127: a pair is below 2²², and the sum of all fits 32 bits by the choice of
// the limit of x.
template <int ROWS>
void head_int8_rows(const int8_t* w, const float* w_scale, int n, int begin, int end,
                    const int16_t* x, ptrdiff_t x_stride, const float* x_scale, float* logits,
                    ptrdiff_t logits_stride) {
    constexpr int AHEAD = 1024, LINE = 64;
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
            __builtin_prefetch(weight + i + AHEAD);
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
