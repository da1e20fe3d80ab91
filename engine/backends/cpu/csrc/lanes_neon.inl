// Sixteen float lanes as four NEON registers: lanes 0–3, 4–7, 8–11 and 12–15.
//
// Compared with the scalar lanes, bit for bit, by tests/backends/cpu/native/isa_compare.cpp under
// emulation (qemu-aarch64). Not run on hardware.

struct Lanes {
    float32x4_t a, b, c, d;
};

struct Bits {
    int32x4_t a, b, c, d;
};

constexpr int DOT_PRODUCTS = 4;  // that the registers hold side by side

inline Lanes set1(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
}
inline Lanes load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
inline void store(float* p, Lanes x) {
    vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}

// The same instruction on all four registers.
template <class F>
inline Lanes each(Lanes x, F f) {
    return {f(x.a), f(x.b), f(x.c), f(x.d)};
}
template <class F>
inline Lanes each(Lanes x, Lanes y, F f) {
    return {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)};
}

inline float32x4_t max(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
inline float32x4_t min(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
inline float32x4_t power_of_two(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

inline Lanes add(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return vaddq_f32(u, v); });
}
inline Lanes sub(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return vsubq_f32(u, v); });
}
inline Lanes mul(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return vmulq_f32(u, v); });
}
inline Lanes div(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return vdivq_f32(u, v); });
}
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
            vfmaq_f32(z.d, x.d, y.d)};
}
// Not vmaxq and vminq: those return NaN for NaN, and order the two zeros.
inline Lanes max(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return max(u, v); });
}
inline Lanes min(Lanes x, Lanes y) {
    return each(x, y, [](float32x4_t u, float32x4_t v) { return min(u, v); });
}
inline Lanes round_even(Lanes x) {
    return each(x, [](float32x4_t u) { return vrndnq_f32(u); });
}
inline Lanes keep_from(Lanes x, float limit, Lanes value) {
    const float32x4_t edge = vdupq_n_f32(limit);
    return each(x, value, [edge](float32x4_t u, float32x4_t v) {
        return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(u, edge), vreinterpretq_u32_f32(v)));
    });
}
inline Lanes power_of_two(Lanes n) {
    return each(n, [](float32x4_t u) { return power_of_two(u); });
}

template <int H>
inline float32x4_t butterfly(float32x4_t a) {
    constexpr uint32_t FIRST = H == 1 ? ~0u : 0u;
    const uint32x4_t upper = {0, FIRST, ~FIRST, ~0u};
    const float32x4_t other = H == 1 ? vrev64q_f32(a) : vextq_f32(a, a, 2);
    return vbslq_f32(upper, vsubq_f32(other, a), vaddq_f32(a, other));
}
template <int H>
inline Lanes butterfly(Lanes x) {
    if (H == 8) {
        return {vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d), vsubq_f32(x.a, x.c),
                vsubq_f32(x.b, x.d)};
    }
    if (H == 4) {
        return {vaddq_f32(x.a, x.b), vsubq_f32(x.a, x.b), vaddq_f32(x.c, x.d),
                vsubq_f32(x.c, x.d)};
    }
    return each(x, [](float32x4_t u) { return butterfly<H>(u); });
}

inline Bits no_bits() {
    const int32x4_t zero = vdupq_n_s32(0);
    return {zero, zero, zero, zero};
}
inline int32x4_t max_magnitude(int32x4_t a, float32x4_t x) {
    return vmaxq_s32(a, vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff)));
}
inline Bits max_magnitude(Bits a, Lanes x) {
    return {max_magnitude(a.a, x.a), max_magnitude(a.b, x.b), max_magnitude(a.c, x.c),
            max_magnitude(a.d, x.d)};
}
inline float reduce_magnitude(Bits a) {
    const int32_t best = vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.a, a.b), vmaxq_s32(a.c, a.d)));
    float r;
    __builtin_memcpy(&r, &best, 4);
    return r;
}

inline float reduce_add(Lanes x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float reduce_max(Lanes x) {
    const float32x4_t four = max(max(x.a, x.c), max(x.b, x.d));
    const float32x2_t low = vget_low_f32(four), high = vget_high_f32(four);
    const float32x2_t two = vbsl_f32(vcgt_f32(low, high), low, high);
    const float even = vget_lane_f32(two, 0), odd = vget_lane_f32(two, 1);
    return even > odd ? even : odd;
}

inline float32x4_t load_half4(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline Lanes load_half(const uint16_t* p) {
    return {load_half4(p), load_half4(p + 4), load_half4(p + 8), load_half4(p + 12)};
}
inline void store_half4(uint16_t* p, float32x4_t x) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
inline void store_half(uint16_t* p, Lanes x) {
    store_half4(p, x.a), store_half4(p + 4, x.b), store_half4(p + 8, x.c), store_half4(p + 12, x.d);
}
inline float32x4_t load_bfloat4(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
inline Lanes load_bfloat(const uint16_t* p) {
    return {load_bfloat4(p), load_bfloat4(p + 4), load_bfloat4(p + 8), load_bfloat4(p + 12)};
}
inline Lanes load_int8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
}
inline int16x8_t to_int16(float32x4_t low, float32x4_t high) {
    return vcombine_s16(vmovn_s32(vcvtq_s32_f32(low)), vmovn_s32(vcvtq_s32_f32(high)));
}
inline void store_int8(int8_t* p, Lanes x) {
    vst1q_s8(p, vcombine_s8(vmovn_s16(to_int16(x.a, x.b)), vmovn_s16(to_int16(x.c, x.d))));
}
inline void store_int16(int16_t* p, Lanes x) {
    vst1q_s16(p, to_int16(x.a, x.b)), vst1q_s16(p + 8, to_int16(x.c, x.d));
}
