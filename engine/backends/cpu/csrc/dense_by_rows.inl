// The head's product by row count, 1 to MAX_GEMM_ROWS: a template parameter of the kernels.

void dense_int8(const int8_t* w, const float* w_scale, int n, int begin, int end, const int16_t* x,
               ptrdiff_t x_stride, const float* x_scale, int rows, float* logits,
               ptrdiff_t logits_stride) {
    constexpr decltype(&dense_int8_rows<1>) BY_ROWS[] = {
        dense_int8_rows<1>, dense_int8_rows<2>, dense_int8_rows<3>, dense_int8_rows<4>,
        dense_int8_rows<5>, dense_int8_rows<6>, dense_int8_rows<7>, dense_int8_rows<8>};
    BY_ROWS[rows - 1](w, w_scale, n, begin, end, x, x_stride, x_scale, logits, logits_stride);
}
