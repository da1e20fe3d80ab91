// The integer kernels on AVX2.

inline int32_t sum_lanes(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

inline __m256i load_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// OUTS neighbouring outputs at a time over ROWS activation rows.
//
// Every second pair of code bits is left where it lies, which spares two of three shifts: its
// products come out four times too large, in a sum of their own that is divided at the end. Such
// a product pair is at most 8 · 127 · 2 = 2032, two of them per block, so an int16 lane holds 8
// blocks before it must be widened.
template <int ROWS, int OUTS>
inline void add_chunk(const uint8_t* w, int blocks, const int8_t* x, ptrdiff_t q_stride,
                      __m256i* wide) {
    constexpr int BYTES = BLOCK / 4, AHEAD = 1024;
    const __m256i even = _mm256_set1_epi8(0x03), odd = _mm256_set1_epi8(0x0c);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[ROWS][OUTS], fourfold[ROWS][OUTS];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int r = 0; r < OUTS; r++) sums[m][r] = fourfold[m][r] = _mm256_setzero_si256();
    for (int b = 0; b < blocks; b++, w += QUAD * BYTES, x += BLOCK) {
        __builtin_prefetch(w + AHEAD);
#pragma GCC unroll 4
        for (int r = 0; r < OUTS; r++) {
            const __m256i low = load_bytes(w + r * BYTES);
            const __m256i high = _mm256_srli_epi16(low, 4);
            const __m256i w0 = _mm256_and_si256(low, even), w1 = _mm256_and_si256(low, odd);
            const __m256i w2 = _mm256_and_si256(high, even), w3 = _mm256_and_si256(high, odd);
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; m++) {
                const int8_t* at = x + m * q_stride;
                sums[m][r] = _mm256_add_epi16(
                    sums[m][r], _mm256_add_epi16(_mm256_maddubs_epi16(w0, load_bytes(at)),
                                                 _mm256_maddubs_epi16(w2, load_bytes(at + 64))));
                fourfold[m][r] = _mm256_add_epi16(
                    fourfold[m][r], _mm256_add_epi16(_mm256_maddubs_epi16(w1, load_bytes(at + 32)),
                                                     _mm256_maddubs_epi16(w3, load_bytes(at + 96))));
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int r = 0; r < OUTS; r++) {
            const __m256i quarter = _mm256_srai_epi32(_mm256_madd_epi16(fourfold[m][r], ones), 2);
            __m256i& into = wide[m * QUAD + r];
            into = _mm256_add_epi32(
                into, _mm256_add_epi32(_mm256_madd_epi16(sums[m][r], ones), quarter));
        }
}

template <int ROWS, int OUTS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, CHUNK = 8;
    const uint8_t* w = codes + ptrdiff_t(begin) * blocks * QUAD * BYTES;
    for (int quad = begin; quad < end; quad++) {
        __m256i wide[ROWS * QUAD] = {};
        for (int start = 0; start < blocks; start += CHUNK, w += CHUNK * QUAD * BYTES) {
            const int count = blocks - start < CHUNK ? blocks - start : CHUNK;
            for (int r = 0; r < QUAD; r += OUTS)
                add_chunk<ROWS, OUTS>(w + r * BYTES, count, q + start * BLOCK, q_stride, wide + r);
        }
        w += (blocks - round_up(blocks, CHUNK)) * QUAD * BYTES;
        for (int m = 0; m < ROWS; m++)
            for (int r = 0; r < QUAD; r++)
                acc[m * acc_stride + quad * QUAD + r] = sum_lanes(wide[m * QUAD + r]);
    }
}

void ternary(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int rows,
             int begin, int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr decltype(&ternary_rows<1, 2>) BY_ROWS[] = {
        ternary_rows<1, 2>, ternary_rows<2, 2>, ternary_rows<3, 1>, ternary_rows<4, 1>,
        ternary_rows<5, 1>, ternary_rows<6, 1>, ternary_rows<7, 1>, ternary_rows<8, 1>};
    BY_ROWS[rows - 1](codes, blocks, q, q_stride, begin, end, acc, acc_stride);
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

void head_int8(const int8_t* w, const float* w_scale, int n, int begin, int end, const int16_t* x,
               ptrdiff_t x_stride, const float* x_scale, int rows, float* logits,
               ptrdiff_t logits_stride) {
    constexpr decltype(&head_int8_rows<1>) BY_ROWS[] = {
        head_int8_rows<1>, head_int8_rows<2>, head_int8_rows<3>, head_int8_rows<4>,
        head_int8_rows<5>, head_int8_rows<6>, head_int8_rows<7>, head_int8_rows<8>};
    BY_ROWS[rows - 1](w, w_scale, n, begin, end, x, x_stride, x_scale, logits, logits_stride);
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
