// The ternary product by row count, 1 to MAX_GEMM_ROWS: a template parameter of the kernels.

void ternary(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int rows,
             int begin, int end, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr decltype(&ternary_rows<1>) BY_ROWS[] = {
        ternary_rows<1>, ternary_rows<2>, ternary_rows<3>, ternary_rows<4>,
        ternary_rows<5>, ternary_rows<6>, ternary_rows<7>, ternary_rows<8>};
    BY_ROWS[rows - 1](codes, blocks, q, q_stride, begin, end, acc, acc_stride);
}
