// The float arithmetic, written once over the `Lanes` of the including instruction set.

// e^x, within 2 units in the last place; 0 below the smallest normal result. The polynomial and
// the split of ln 2 are those of Cephes' expf (S. L. Moshier).
inline Lanes exp(Lanes x) {
    const Lanes bounded = max(min(x, set1(88.0f)), set1(-87.0f));
    const Lanes n = round_even(mul(bounded, set1(1.44269504088896341f)));
    Lanes r = fma(n, set1(-0.693359375f), bounded);
    r = fma(n, set1(2.12194440e-4f), r);
    Lanes p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return keep_from(x, -87.0f, mul(p, power_of_two(n)));
}

template <Dtype DTYPE>
inline Lanes load_from(const uint8_t* w, int i) {
    if (DTYPE == Dtype::float16) return load_half(reinterpret_cast<const uint16_t*>(w) + i);
    if (DTYPE == Dtype::bfloat16) return load_bfloat(reinterpret_cast<const uint16_t*>(w) + i);
    return load(reinterpret_cast<const float*>(w) + i);
}

inline Lanes load_as(const void* w, Dtype dtype, int i) {
    const auto* bytes = static_cast<const uint8_t*>(w);
    switch (dtype) {
        case Dtype::float16: return load_from<Dtype::float16>(bytes, i);
        case Dtype::bfloat16: return load_from<Dtype::bfloat16>(bytes, i);
        default: return load_from<Dtype::float32>(bytes, i);
    }
}

float rms_norm(const float* x, const float* gain, int n, float eps, float* out) {
    Lanes squares = set1(0.0f);
    for (int i = 0; i < n; i += LANES) {
        const Lanes a = load(x + i);
        squares = fma(a, a, squares);
    }
    const float mean = reduce_add(squares) / float(n);
    const Lanes inverse = set1(1.0f / __builtin_sqrtf(mean + eps));
    for (int i = 0; i < n; i += LANES)
        store(out + i, mul(mul(load(x + i), inverse), load(gain + i)));
    return mean;
}

constexpr float MIN_PEAK = 1e-6f;

float peak_of(const float* x, int n) {
    Bits bits = no_bits();
    for (int i = 0; i < n; i += LANES) bits = max_magnitude(bits, load(x + i));
    return reduce_magnitude(bits);
}

// What x is divided by.
inline float divisor_of(const float* x, int n) {
    const float peak = peak_of(x, n);
    return peak < MIN_PEAK ? MIN_PEAK : peak;
}

// round-half-even(x · limit / peak), within ±limit.
inline Lanes quantised(Lanes x, Lanes limit, Lanes peak) {
    const Lanes q = round_even(div(mul(x, limit), peak));
    return max(min(q, limit), sub(set1(0.0f), limit));
}

Quantised quantise(const float* x, int n, int padded, int limit, int8_t* q) {
    const float peak = divisor_of(x, n);
    Lanes sum = set1(0.0f);  // whole numbers below 2²⁴: exact
    int i = 0;
    for (; i < n; i += LANES) {
        const Lanes rounded = quantised(load(x + i), set1(float(limit)), set1(peak));
        sum = add(sum, rounded);
        store_int8(q + i, rounded);
    }
    for (; i < padded; i += LANES) store_int8(q + i, set1(0.0f));
    return {peak, int32_t(reduce_add(sum))};
}

float quantise_wide(const float* x, int n, int padded, int limit, int16_t* q) {
    const float peak = divisor_of(x, n);
    int i = 0;
    for (; i < n; i += LANES)
        store_int16(q + i, quantised(load(x + i), set1(float(limit)), set1(peak)));
    for (; i < padded; i += LANES) store_int16(q + i, set1(0.0f));
    return peak;
}

// Two strides, h and 2 · h, in one pass over memory.
inline void two_strides(float* x, int n, int h, Lanes factor) {
    for (int start = 0; start < n; start += 4 * h)
        for (float* p = x + start; p < x + start + h; p += LANES) {
            const Lanes a = load(p), b = load(p + h), c = load(p + 2 * h), d = load(p + 3 * h);
            const Lanes first = add(a, b), second = sub(a, b), third = add(c, d), fourth = sub(c, d);
            store(p, mul(add(first, third), factor));
            store(p + h, mul(add(second, fourth), factor));
            store(p + 2 * h, mul(sub(first, third), factor));
            store(p + 3 * h, mul(sub(second, fourth), factor));
        }
}

void hadamard(float* x, int n, float factor) {
    // The last pass multiplies; 1 changes nothing.
    const Lanes one = set1(1.0f), last = set1(factor);
    for (int i = 0; i < n; i += LANES) {
        Lanes a = load(x + i);
        if (n > 1) a = butterfly<1>(a);
        if (n > 2) a = butterfly<2>(a);
        if (n > 4) a = butterfly<4>(a);
        if (n > 8) a = butterfly<8>(a);
        store(x + i, mul(a, n <= LANES ? last : one));
    }
    int h = LANES;
    for (; 2 * h < n; h *= 4) two_strides(x, n, h, 4 * h == n ? last : one);
    if (h < n)
        for (int i = 0; i < h; i += LANES) {
            const Lanes a = load(x + i), b = load(x + i + h);
            store(x + i, mul(add(a, b), last));
            store(x + i + h, mul(sub(a, b), last));
        }
}

float quantise_hadamard(float* x, int n, int padded, int limit, int digits, int8_t* q,
                        ptrdiff_t q_stride, int32_t* sums) {
    const float peak = divisor_of(x, n);
    for (int i = 0; i < n; i += LANES)
        store(x + i, quantised(load(x + i), set1(float(limit)), set1(peak)));
    hadamard(x, n, 1.0f);
    for (int d = 0; d < digits; d++, q += q_stride) {
        // Below 2²⁴ no quotient is so near to a half that its rounding could reach it.
        const Lanes base = set1(d + 1 < digits ? float(DIGIT_BASE) : __builtin_inff());
        Lanes sum = set1(0.0f);  // whole numbers below 2²⁴: exact
        int i = 0;
        for (; i < n; i += LANES) {
            const Lanes value = load(x + i), rest = round_even(div(value, base));
            // The last digit is all that is left.
            const Lanes digit = d + 1 < digits ? sub(value, mul(rest, base)) : value;
            sum = add(sum, digit);
            store_int8(q + i, digit);
            store(x + i, rest);
        }
        for (; i < padded; i += LANES) store_int8(q + i, set1(0.0f));
        sums[d] = int32_t(reduce_add(sum));
    }
    return peak;
}

void swiglu(const float* gate, const float* up, int n, float* out) {
    for (int i = 0; i < n; i += LANES) {
        const Lanes x = load(gate + i);
        const Lanes silu = div(x, add(set1(1.0f), exp(sub(set1(0.0f), x))));
        store(out + i, mul(silu, load(up + i)));
    }
}

float store_half_row(const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i += LANES) store_half(out + i, load(x + i));
    return divisor_of(x, n);
}

float store_int8_row(const float* x, int n, int8_t* out) {
    const float peak = divisor_of(x, n);
    for (int i = 0; i < n; i += LANES)
        store_int8(out + i, quantised(load(x + i), set1(127.0f), set1(peak)));
    return peak / 127.0f;
}

// --- attention ------------------------------------------------------------------------------

// How cached elements become floats; int8 values are left without their scale, which is applied
// to a position's score, or to its weight.
struct FloatCache {
    using Element = float;
    static Lanes load(const Element* p) { return load_from<Dtype::float32>(reinterpret_cast<const uint8_t*>(p), 0); }
    static float scale(const KvView&, int, int) { return 1.0f; }
};

struct HalfCache {
    using Element = uint16_t;
    static Lanes load(const Element* p) { return load_half(p); }
    static float scale(const KvView&, int, int) { return 1.0f; }
};

struct Int8Cache {
    using Element = int8_t;
    static Lanes load(const Element* p) { return load_int8(p); }
    static float scale(const KvView& view, int block, int offset) {
        return view.scales[block * view.scale_stride + offset];
    }
};

// GROUP query heads at once, so that a cached vector is read and widened once for all of them.
template <class Cache, int GROUP>
void scores_of(const Attention& a, const float* queries, float* scores) {
    for (int start = 0; start < a.num_keys; start += a.block_size) {
        const int block = a.blocks[start / a.block_size];
        const auto* key = reinterpret_cast<const typename Cache::Element*>(
            a.keys.data + block * a.keys.block_stride);
        const int count = a.num_keys - start < a.block_size ? a.num_keys - start : a.block_size;
        for (int p = 0; p < count; p++, key += a.head_stride) {
            Lanes sums[GROUP];
            for (int g = 0; g < GROUP; g++) sums[g] = set1(0.0f);
            for (int i = 0; i < a.head_stride; i += LANES) {
                const Lanes k = Cache::load(key + i);
                for (int g = 0; g < GROUP; g++)
                    sums[g] = fma(load(queries + g * a.head_stride + i), k, sums[g]);
            }
            const float scale = Cache::scale(a.keys, block, p);
            for (int g = 0; g < GROUP; g++)
                scores[g * a.score_stride + start + p] = reduce_add(sums[g]) * scale;
        }
    }
}

// Scores to weights e^(s − max), not yet normalised; returns their sum.
inline float soften(float* scores, int n) {
    const int padded = round_up(n, LANES);
    for (int p = n; p < padded; p++) scores[p] = -__builtin_inff();
    Lanes peaks = load(scores);
    for (int p = LANES; p < padded; p += LANES) peaks = max(peaks, load(scores + p));
    const Lanes peak = set1(reduce_max(peaks));
    Lanes sum = set1(0.0f);
    for (int p = 0; p < padded; p += LANES) {
        const Lanes weight = exp(sub(load(scores + p), peak));
        store(scores + p, weight);
        sum = add(sum, weight);
    }
    return reduce_add(sum);
}

template <class Cache, int GROUP>
void mix_values(const Attention& a, const float* weights, const float* totals, float* out) {
    for (int i = 0; i < a.head_stride; i += LANES) {
        Lanes sums[GROUP];
        for (int g = 0; g < GROUP; g++) sums[g] = set1(0.0f);
        for (int start = 0; start < a.num_keys; start += a.block_size) {
            const int block = a.blocks[start / a.block_size];
            const auto* value = reinterpret_cast<const typename Cache::Element*>(
                a.values.data + block * a.values.block_stride) + i;
            const int count = a.num_keys - start < a.block_size ? a.num_keys - start : a.block_size;
            for (int p = 0; p < count; p++, value += a.head_stride) {
                const Lanes v = Cache::load(value);
                const float scale = Cache::scale(a.values, block, p);
                for (int g = 0; g < GROUP; g++)
                    sums[g] = fma(set1(weights[g * a.score_stride + start + p] * scale), v, sums[g]);
            }
        }
        for (int g = 0; g < GROUP; g++)
            store(out + g * a.head_stride + i, div(sums[g], set1(totals[g])));
    }
}

template <class Cache, int GROUP>
void attend_group(const Attention& a, int first) {
    const float* queries = a.queries + first * a.head_stride;
    float totals[GROUP];
    scores_of<Cache, GROUP>(a, queries, a.scores);
    for (int g = 0; g < GROUP; g++) totals[g] = soften(a.scores + g * a.score_stride, a.num_keys);
    mix_values<Cache, GROUP>(a, a.scores, totals, a.out + first * a.head_stride);
}

template <class Cache>
void attend_as(const Attention& a) {
    int first = 0;
    for (; first + 4 <= a.group; first += 4) attend_group<Cache, 4>(a, first);
    for (; first + 2 <= a.group; first += 2) attend_group<Cache, 2>(a, first);
    for (; first < a.group; first++) attend_group<Cache, 1>(a, first);
}

void attend(const Attention& a) {
    switch (a.dtype) {
        case KvDtype::float32: return attend_as<FloatCache>(a);
        case KvDtype::float16: return attend_as<HalfCache>(a);
        case KvDtype::int8: return attend_as<Int8Cache>(a);
    }
}

// --- dense weights, the head's among them ---------------------------------------------------

// OUTPUTS × ROWS dot products side by side, since a sum waits for its last addition; each is what
// it would be alone.
template <Dtype DTYPE, int OUTPUTS, int ROWS>
inline void dot_products(const uint8_t* w, int n, const float* x, ptrdiff_t x_stride, float* out,
                         ptrdiff_t out_stride) {
    Lanes sums[OUTPUTS][ROWS];
    for (int o = 0; o < OUTPUTS; o++)
        for (int m = 0; m < ROWS; m++) sums[o][m] = set1(0.0f);
    for (int i = 0; i < n; i += LANES) {
        Lanes weights[OUTPUTS];
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; o++)
            weights[o] = load_from<DTYPE>(w + ptrdiff_t(o) * n * size_of(DTYPE), i);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; m++) {
            const Lanes a = load(x + m * x_stride + i);
#pragma GCC unroll 4
            for (int o = 0; o < OUTPUTS; o++) sums[o][m] = fma(weights[o], a, sums[o][m]);
        }
    }
    for (int o = 0; o < OUTPUTS; o++)
        for (int m = 0; m < ROWS; m++) out[m * out_stride + o] = reduce_add(sums[o][m]);
}

template <Dtype DTYPE, int ROWS>
void dense_rows(const uint8_t* w, int n, int count, const float* x, ptrdiff_t x_stride, float* out,
                ptrdiff_t out_stride) {
    constexpr int MOST = DOT_PRODUCTS / ROWS, OUTPUTS = MOST > 4 ? 4 : MOST > 1 ? MOST : 1;
    int v = 0;
    for (; v + OUTPUTS <= count; v += OUTPUTS)
        dot_products<DTYPE, OUTPUTS, ROWS>(w + ptrdiff_t(v) * n * size_of(DTYPE), n, x, x_stride, out + v,
                                           out_stride);
    for (; v < count; v++)
        dot_products<DTYPE, 1, ROWS>(w + ptrdiff_t(v) * n * size_of(DTYPE), n, x, x_stride, out + v,
                                     out_stride);
}

template <Dtype DTYPE>
void dense_as(const void* w, int n, int begin, int end, const float* x, ptrdiff_t x_stride,
              int rows, float* out, ptrdiff_t out_stride) {
    const uint8_t* from = static_cast<const uint8_t*>(w) + ptrdiff_t(begin) * n * size_of(DTYPE);
    const auto take = [&](auto* product, int count) {
        product(from, n, end - begin, x, x_stride, out, out_stride);
        x += count * x_stride, out += count * out_stride, rows -= count;
    };
    while (rows >= 4) take(dense_rows<DTYPE, 4>, 4);
    if (rows >= 2) take(dense_rows<DTYPE, 2>, 2);
    if (rows == 1) take(dense_rows<DTYPE, 1>, 1);
}

void dense_float(const void* w, Dtype dtype, int n, int begin, int end, const float* x,
                 ptrdiff_t x_stride, int rows, float* out, ptrdiff_t out_stride) {
    const auto product = dtype == Dtype::float16    ? dense_as<Dtype::float16>
                         : dtype == Dtype::bfloat16 ? dense_as<Dtype::bfloat16>
                                                    : dense_as<Dtype::float32>;
    product(w, n, begin, end, x, x_stride, rows, out, out_stride);
}

float pack_row(const void* w, Dtype dtype, int n, int8_t* out) {
    Bits bits = no_bits();
    for (int i = 0; i < n; i += LANES) bits = max_magnitude(bits, load_as(w, dtype, i));
    const float peak = reduce_magnitude(bits);
    const Lanes divisor = set1(peak > 0.0f ? peak : 1.0f);
    for (int i = 0; i < n; i += LANES)
        store_int8(out + i, quantised(load_as(w, dtype, i), set1(127.0f), divisor));
    return peak / 127.0f;
}

void widen(const void* in, Dtype dtype, int n, float* out) {
    for (int i = 0; i < n; i += LANES) store(out + i, load_as(in, dtype, i));
}

float sum_exp(const float* z, int n, float peak) {
    Lanes sum = set1(0.0f);
    int i = 0;
    for (; i + LANES <= n; i += LANES) sum = add(sum, exp(sub(load(z + i), set1(peak))));
    if (i < n) {
        float tail[LANES];
        for (int j = 0; j < LANES; j++) tail[j] = i + j < n ? z[i + j] - peak : -__builtin_inff();
        sum = add(sum, exp(load(tail)));
    }
    return reduce_add(sum);
}

float max_of(const float* z, int n) {
    float best = -__builtin_inff();
    int i = 0;
    if (n >= LANES) {
        Lanes peaks = load(z);
        for (i = LANES; i + LANES <= n; i += LANES) peaks = max(peaks, load(z + i));
        best = reduce_max(peaks);
    }
    for (; i < n; i++)
        if (z[i] > best) best = z[i];
    return best;
}
