// The integer kernels in plain C++: the definition that the other instruction sets must match.

void ternary(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int rows,
             int begin, int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int BYTES = BLOCK / 4;
    for (int o = begin * QUAD; o < end * QUAD; o++) {
        const uint8_t* quad = codes + ptrdiff_t(o / QUAD) * blocks * QUAD * BYTES + o % QUAD * BYTES;
        for (int m = 0; m < rows; m++) {
            int32_t sum = 0;
            for (int b = 0; b < blocks; b++) {
                const uint8_t* bytes = quad + ptrdiff_t(b) * QUAD * BYTES;
                const int8_t* x = q + m * q_stride + b * BLOCK;
                for (int j = 0; j < BYTES; j++)
                    for (int k = 0; k < 4; k++) sum += (bytes[j] >> 2 * k & 3) * x[j + k * BYTES];
            }
            acc[m * acc_stride + o] = sum;
        }
    }
}

void dense_int8(const int8_t* w, const float* w_scale, int n, int begin, int end, const int16_t* x,
               ptrdiff_t x_stride, const float* x_scale, int rows, float* logits,
               ptrdiff_t logits_stride) {
    for (int v = begin; v < end; v++)
        for (int m = 0; m < rows; m++) {
            int32_t sum = 0;
            for (int i = 0; i < n; i++) sum += int32_t(w[ptrdiff_t(v) * n + i]) * x[m * x_stride + i];
            logits[m * logits_stride + v - begin] = float(sum) * (x_scale[m] * w_scale[v]);
        }
}
