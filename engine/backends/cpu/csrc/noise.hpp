// Gumbel noise by token id: the same bits as engine/sampling/noise.py, where the sources are named.
#pragma once

#include <cmath>
#include <cstdint>

namespace bitskip {

struct Words {
    uint32_t v[4];
};

// Philox4x32-10 with counter (position, block, 0, 0) and the seed as key: words of ids 4·block …
inline Words philox(uint64_t seed, uint32_t position, uint32_t block) {
    uint32_t c0 = position, c1 = block, c2 = 0, c3 = 0;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t even = uint64_t(c0) * 0xD2511F53u, odd = uint64_t(c2) * 0xCD9E8D57u;
        c0 = uint32_t(odd >> 32) ^ c1 ^ k0;
        c1 = uint32_t(odd);
        c2 = uint32_t(even >> 32) ^ c3 ^ k1;
        c3 = uint32_t(even);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

inline double gumbel(uint32_t word) {
    return -std::log(-std::log((double(word) + 0.5) * 0x1p-32));
}

// Upper bounds of the noise, by a word's leading bits: they spare most of the logarithms.
class NoiseBound {
public:
    NoiseBound() {
        for (uint32_t i = 0; i < SIZE; i++)
            bound_[i] = gumbel(i << SHIFT | ((1u << SHIFT) - 1)) + 1e-9;
    }
    double operator()(uint32_t word) const { return bound_[word >> SHIFT]; }
    double greatest() const { return bound_[SIZE - 1]; }

private:
    static constexpr uint32_t BITS = 10, SIZE = 1u << BITS, SHIFT = 32 - BITS;
    double bound_[SIZE];
};

}  // namespace bitskip
