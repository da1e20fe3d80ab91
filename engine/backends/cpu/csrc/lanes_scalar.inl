// Sixteen float lanes in plain C++: the definition that the other instruction sets must match.

struct Lanes {
    float v[LANES];
};

struct Bits {
    int32_t v[LANES];
};

constexpr int DOT_PRODUCTS = 1;  // that the registers hold side by side

#define EACH_LANE for (int i = 0; i < LANES; i++)

inline Lanes set1(float x) { Lanes r; EACH_LANE r.v[i] = x; return r; }
inline Lanes load(const float* p) { Lanes r; EACH_LANE r.v[i] = p[i]; return r; }
inline void store(float* p, const Lanes& a) { EACH_LANE p[i] = a.v[i]; }
inline Lanes add(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] + b.v[i]; return r; }
inline Lanes sub(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] - b.v[i]; return r; }
inline Lanes mul(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] * b.v[i]; return r; }
inline Lanes div(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] / b.v[i]; return r; }
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) { Lanes r; EACH_LANE r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]); return r; }
// As the vector instructions do it: the second operand if they are equal or one is NaN.
inline Lanes max(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
inline Lanes min(const Lanes& a, const Lanes& b) { Lanes r; EACH_LANE r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return r; }
inline Lanes round_even(const Lanes& a) { Lanes r; EACH_LANE r.v[i] = __builtin_rintf(a.v[i]); return r; }
// `value` where x ≥ limit, else 0.
inline Lanes keep_from(const Lanes& x, float limit, const Lanes& value) { Lanes r; EACH_LANE r.v[i] = x.v[i] >= limit ? value.v[i] : 0.0f; return r; }
// 2ⁿ for whole n in −126..127.
inline Lanes power_of_two(const Lanes& n) {
    Lanes r;
    EACH_LANE {
        const int32_t bits = (int32_t(n.v[i]) + 127) << 23;
        __builtin_memcpy(&r.v[i], &bits, 4);
    }
    return r;
}

// Lane i and lane i + H, where i lacks the bit H, become their sum and their difference.
template <int H>
inline Lanes butterfly(const Lanes& a) { Lanes r; EACH_LANE r.v[i] = i & H ? a.v[i - H] - a.v[i] : a.v[i] + a.v[i + H]; return r; }

// Magnitudes as integers: ordered as the floats are, with NaN above infinity.
inline Bits no_bits() { Bits r; EACH_LANE r.v[i] = 0; return r; }
inline Bits max_magnitude(const Bits& a, const Lanes& x) {
    Bits r;
    EACH_LANE {
        int32_t bits;
        __builtin_memcpy(&bits, &x.v[i], 4);
        bits &= 0x7fffffff;
        r.v[i] = bits > a.v[i] ? bits : a.v[i];
    }
    return r;
}
inline float reduce_magnitude(const Bits& a) {
    int32_t best = 0;
    EACH_LANE if (a.v[i] > best) best = a.v[i];
    float r;
    __builtin_memcpy(&r, &best, 4);
    return r;
}

inline float reduce_add(const Lanes& a) {
    float v[LANES];
    EACH_LANE v[i] = a.v[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] = v[i] + v[i + half];
    return v[0];
}
inline float reduce_max(const Lanes& a) {
    float v[LANES];
    EACH_LANE v[i] = a.v[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
    return v[0];
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    uint32_t bits = half & 0x7fff;
    if (bits >= 0x7c00) {
        bits = 0x7f800000 | (bits & 0x3ff) << 13;
    } else if (bits >= 0x400) {
        bits = (bits << 13) + (112u << 23);
    } else {
        const float tiny = float(bits) * 0x1p-24f;  // exact
        __builtin_memcpy(&bits, &tiny, 4);
    }
    bits |= sign;
    float r;
    __builtin_memcpy(&r, &bits, 4);
    return r;
}
inline uint16_t float_to_half(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00 | uint16_t(bits >> 13 & 0x3ff);
    if (bits >= 0x47800000) return sign | 0x7c00;
    if (bits < 0x38800000) {
        // Subnormal: the float unit rounds to a multiple of 2⁻²⁴, half to even.
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, 4);
        return sign | uint16_t(__builtin_rintf(magnitude * 0x1p24f));
    }
    return sign | uint16_t((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

inline Lanes load_half(const uint16_t* p) { Lanes r; EACH_LANE r.v[i] = half_to_float(p[i]); return r; }
inline void store_half(uint16_t* p, const Lanes& a) { EACH_LANE p[i] = float_to_half(a.v[i]); }
inline Lanes load_bfloat(const uint16_t* p) {
    Lanes r;
    EACH_LANE {
        const uint32_t bits = uint32_t(p[i]) << 16;
        __builtin_memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
inline Lanes load_int8(const int8_t* p) { Lanes r; EACH_LANE r.v[i] = float(p[i]); return r; }
// Whole floats in −127..127 and −32767..32767.
inline void store_int8(int8_t* p, const Lanes& a) { EACH_LANE p[i] = int8_t(a.v[i]); }
inline void store_int16(int16_t* p, const Lanes& a) { EACH_LANE p[i] = int16_t(a.v[i]); }

#undef EACH_LANE
