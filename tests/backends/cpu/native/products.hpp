// Ternary products by every way that an instruction set has, behind one interface.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.hpp"

namespace bitskip {

enum class Way { rows, digits, eight_sums, sixteen_sums };

inline std::vector<Way> ways_of(const Kernels& kernels) {
    if (!kernels.lookups) return {Way::rows};
    return {Way::digits, Way::eight_sums, Way::sixteen_sums};
}

inline int most_rows(Way way) {
    return way == Way::rows || way == Way::eight_sums ? 8 : way == Way::digits ? 3 : 16;
}

// Memory as the kernels want it: zeros, 64-byte aligned.
template <class T>
class Aligned {
public:
    explicit Aligned(size_t count) : lines_((count * sizeof(T) + 63) / 64) {}
    T* data() { return reinterpret_cast<T*>(lines_.data()); }
    const T* data() const { return reinterpret_cast<const T*>(lines_.data()); }
    T& operator[](size_t i) { return data()[i]; }
    const T& operator[](size_t i) const { return data()[i]; }

private:
    struct alignas(64) Line {
        unsigned char bytes[64] = {};
    };
    std::vector<Line> lines_;
};

// acc[m][o] = Σ q[m][i] · trit[o][i] for the outputs of tiles begin..end of packed `codes`.
inline void product(const Kernels& kernels, Way way, const uint8_t* codes, int blocks, int quads,
                    const int8_t* q, ptrdiff_t q_stride, int rows, int begin, int end,
                    int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int QUADS = TILE / QUAD;
    const int inputs = blocks * BLOCK;
    if (way == Way::rows) {
        const int last = std::min(end * QUADS, quads);
        kernels.ternary(codes, blocks, q, q_stride, rows, begin * QUADS, last, acc, acc_stride);
        for (int m = 0; m < rows; m++) {
            int32_t sum = 0;  // codes are trits + 1
            for (int i = 0; i < inputs; i++) sum += q[m * q_stride + i];
            for (int o = begin * TILE; o < last * QUAD; o++) acc[m * acc_stride + o] -= sum;
        }
        return;
    }
    const Lookups& lookups = *kernels.lookups;
    const int tiles = (quads + QUADS - 1) / QUADS;
    const ptrdiff_t tile_bytes = ptrdiff_t(inputs) / 4 * TILE;
    Aligned<uint8_t> tiled(tiles * tile_bytes);
    for (int t = 0; t < tiles; t++)
        lookups.copy_tile(codes + ptrdiff_t(t) * QUADS * blocks * BLOCK, blocks,
                          std::min(QUADS, quads - t * QUADS), tiled.data() + t * tile_bytes);
    if (way == Way::digits) {
        for (int m = 0; m < rows; m++) {
            Aligned<int8_t> tables(ptrdiff_t(inputs) * 16);
            lookups.digit_tables(q + m * q_stride, blocks, tables.data());
            lookups.by_digits(tiled.data(), blocks, tables.data(), begin, end,
                              acc + m * acc_stride);
        }
        return;
    }
    const int width = way == Way::eight_sums ? 8 : 16;
    Aligned<int16_t> x(ptrdiff_t(inputs) * width);
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < inputs; i++) x[ptrdiff_t(i) * width + m] = q[m * q_stride + i];
    Aligned<char> scratch(LOOKUP_SCRATCH);
    for (int t = begin; t < end; t += LOOKUP_TILES)
        lookups.by_sums(tiled.data(), blocks, x.data(), width, rows, t,
                        std::min(end, t + LOOKUP_TILES), scratch.data(), acc, acc_stride);
}

}  // namespace bitskip
