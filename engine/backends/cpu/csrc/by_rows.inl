// The kernels whose row count is a template parameter, by row count: 1 to MAX_GEMM_ROWS.

void ternary(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int rows,
             int begin, int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr decltype(&ternary_rows<1>) BY_ROWS[] = {
        ternary_rows<1>, ternary_rows<2>, ternary_rows<3>, ternary_rows<4>,
        ternary_rows<5>, ternary_rows<6>, ternary_rows<7>, ternary_rows<8>};
    BY_ROWS[rows - 1](codes, blocks, q, q_stride, begin, end, acc, acc_stride);
}

void head_int8(const int8_t* w, const float* w_scale, int n, int begin, int end, const int16_t* x,
               ptrdiff_t x_stride, const float* x_scale, int rows, float* logits,
               ptrdiff_t logits_stride) {
    constexpr decltype(&head_int8_rows<1>) BY_ROWS[] = {
        head_int8_rows<1>, head_int8_rows<2>, head_int8_rows<3>, head_int8_rows<4>,
        head_int8_rows<5>, head_int8_rows<6>, head_int8_rows<7>, head_int8_rows<8>};
    BY_ROWS[rows - 1](w, w_scale, n, begin, end, x, x_stride, x_scale, logits, logits_stride);
}
