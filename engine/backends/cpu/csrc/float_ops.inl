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

inline Lanes load_as(const void* w, Dtype dtype, int i) {
    switch (dtype) {
        case Dtype::float16: return load_half(static_cast<const uint16_t*>(w) + i);
        case Dtype::bfloat16: return load_bfloat(static_cast<const uint16_t*>(w) + i);
        default: return load(static_cast<const float*>(w) + i);
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

// max |x|, at least MIN_PEAK. Infinite or NaN as soon as one element is.
inline float peak_of(const float* x, int n) {
    Bits bits = no_bits();
    for (int i = 0; i < n; i += LANES) bits = max_magnitude(bits, load(x + i));
    const float peak = reduce_magnitude(bits);
    return peak < MIN_PEAK ? MIN_PEAK : peak;
}

// round-half-even(x · limit / peak), within ±limit.
inline Lanes quantised(Lanes x, Lanes limit, Lanes peak) {
    const Lanes q = round_even(div(mul(x, limit), peak));
    return max(min(q, limit), sub(set1(0.0f), limit));
}

Quantised quantise(const float* x, int n, int padded, int8_t* q) {
    const float peak = peak_of(x, n);
    Lanes sum = set1(0.0f);  // whole numbers below 2²⁴: exact
    int i = 0;
    for (; i < n; i += LANES) {
        const Lanes rounded = quantised(load(x + i), set1(127.0f), set1(peak));
        sum = add(sum, rounded);
        store_int8(q + i, rounded);
    }
    for (; i < padded; i += LANES) store_int8(q + i, set1(0.0f));
    return {peak, int32_t(reduce_add(sum))};
}

float quantise_wide(const float* x, int n, int padded, int limit, int16_t* q) {
    const float peak = peak_of(x, n);
    int i = 0;
    for (; i < n; i += LANES)
        store_int16(q + i, quantised(load(x + i), set1(float(limit)), set1(peak)));
    for (; i < padded; i += LANES) store_int16(q + i, set1(0.0f));
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
    return peak_of(x, n);
}

float store_int8_row(const float* x, int n, int8_t* out) {
    const float peak = peak_of(x, n);
    for (int i = 0; i < n; i += LANES)
        store_int8(out + i, quantised(load(x + i), set1(127.0f), set1(peak)));
    return peak / 127.0f;
}

// --- attention ------------------------------------------------------------------------------

// How cached elements become floats; int8 values are left without their scale, which is applied
// to a position's score, or to its weight.
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
    a.dtype == KvDtype::float16 ? attend_as<HalfCache>(a) : attend_as<Int8Cache>(a);
}

// --- head -----------------------------------------------------------------------------------

void head_float(const void* w, Dtype dtype, int n, int begin, int end, const float* x,
                ptrdiff_t x_stride, int rows, float* logits, ptrdiff_t logits_stride) {
    const ptrdiff_t size = dtype == Dtype::float32 ? 4 : 2;
    for (int v = begin; v < end; v++) {
        const uint8_t* weight = static_cast<const uint8_t*>(w) + v * n * size;
        for (int m = 0; m < rows; m++) {
            Lanes sum = set1(0.0f);
            for (int i = 0; i < n; i += LANES)
                sum = fma(load_as(weight, dtype, i), load(x + m * x_stride + i), sum);
            logits[m * logits_stride + v - begin] = reduce_add(sum);
        }
    }
}

float pack_head_row(const void* w, Dtype dtype, int n, int8_t* out) {
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
