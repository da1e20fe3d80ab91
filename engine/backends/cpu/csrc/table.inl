// The including file's functions as a table.
constexpr Kernels table(const char* name, decltype(Kernels::ternary) ternary,
                        const Lookups* lookups = nullptr) {
    return {name,           rms_norm,       quantise, quantise_wide, swiglu,    attend,
            store_half_row, store_int8_row, ternary,  lookups,       head_int8, head_float,
            pack_head_row,  widen,          sum_exp,  max_of};
}
