// The including file's functions as a table.
constexpr Kernels table(const char* name, decltype(Kernels::ternary) ternary,
                        const Lookups* lookups = nullptr) {
    return {name,           rms_norm,       peak_of, quantise, quantise_wide, quantise_hadamard,
            hadamard,       swiglu,         attend,  store_half_row, store_int8_row, ternary,
            lookups,        dense_int8,     dense_float, pack_row, widen,     sum_exp,
            max_of};
}
