// The integer kernels on NEON with the dot-product extension (Armv8.2), whose instruction adds four
// products of bytes to a 32-bit lane.
//
// Compared with the scalar kernels, bit for bit, by tests/backends/cpu/native/isa_compare.cpp under
// emulation (qemu-aarch64). Not run on hardware.

// Two outputs at a time over ROWS activation rows: what is loaded of a row serves both, and the
// registers hold the sums. Codes are shifted down two bits by two.
template <int ROWS>
void ternary_rows(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int begin,
                  int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4, OUTPUTS = 2, AHEAD = 1024;
    const uint8x16_t three = vdupq_n_u8(3);
    for (int o = begin * QUAD; o < end * QUAD; o += OUTPUTS) {
        const uint8_t* w = codes + ptrdiff_t(o / QUAD) * blocks * QUAD * BYTES + o % QUAD * BYTES;
        int32x4_t sums[ROWS][OUTPUTS];
        for (int m = 0; m < ROWS; m++)
            for (int k = 0; k < OUTPUTS; k++) sums[m][k] = vdupq_n_s32(0);
        for (int b = 0; b < blocks; b++, w += QUAD * BYTES) {
            __builtin_prefetch(w + AHEAD);
            for (int half = 0; half < BYTES; half += 16) {
                uint8x16_t v[OUTPUTS];
                for (int k = 0; k < OUTPUTS; k++) v[k] = vld1q_u8(w + k * BYTES + half);
                const auto add = [&](int quarter) {
                    const int8_t* from = q + b * BLOCK + quarter * BYTES + half;
                    for (int m = 0; m < ROWS; m++) {
                        const int8x16_t x = vld1q_s8(from + m * q_stride);
                        for (int k = 0; k < OUTPUTS; k++)
                            sums[m][k] = vdotq_s32(
                                sums[m][k], vreinterpretq_s8_u8(vandq_u8(v[k], three)), x);
                    }
                };
                add(0);
                for (int quarter = 1; quarter < 4; quarter++) {
                    for (int k = 0; k < OUTPUTS; k++) v[k] = vshrq_n_u8(v[k], 2);
                    add(quarter);
                }
            }
        }
        for (int m = 0; m < ROWS; m++)
            for (int k = 0; k < OUTPUTS; k++)
                acc[m * acc_stride + o + k] = vaddvq_s32(sums[m][k]);
    }
}

// The sum of all products fits 32 bits by the choice of the limit of x.
template <int ROWS>
void dense_int8_rows(const int8_t* w, const float* w_scale, int n, int begin, int end,
                    const int16_t* x, ptrdiff_t x_stride, const float* x_scale, float* logits,
                    ptrdiff_t logits_stride) {
    constexpr int AHEAD = 1024;
    for (int v = begin; v < end; v++) {
        const int8_t* weight = w + ptrdiff_t(v) * n;
        int32x4_t low[ROWS], high[ROWS];
        for (int m = 0; m < ROWS; m++) low[m] = high[m] = vdupq_n_s32(0);
        for (int i = 0; i < n; i += LANES) {
            if (i % 64 == 0) __builtin_prefetch(weight + i + AHEAD);
            const int8x16_t bytes = vld1q_s8(weight + i);
            const int16x8_t first = vmovl_s8(vget_low_s8(bytes)), second = vmovl_high_s8(bytes);
            for (int m = 0; m < ROWS; m++) {
                const int16_t* from = x + m * x_stride + i;
                const int16x8_t x0 = vld1q_s16(from), x1 = vld1q_s16(from + 8);
                low[m] = vmlal_s16(low[m], vget_low_s16(first), vget_low_s16(x0));
                high[m] = vmlal_high_s16(high[m], first, x0);
                low[m] = vmlal_s16(low[m], vget_low_s16(second), vget_low_s16(x1));
                high[m] = vmlal_high_s16(high[m], second, x1);
            }
        }
        for (int m = 0; m < ROWS; m++)
            logits[m * logits_stride + v - begin] =
                float(vaddvq_s32(vaddq_s32(low[m], high[m]))) * (x_scale[m] * w_scale[v]);
    }
}
