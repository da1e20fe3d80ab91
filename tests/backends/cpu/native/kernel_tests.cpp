// Every kernel of every instruction set that runs here against the formulas, written plainly:
// exactly where integers or single roundings decide, within a few roundings where floats are
// summed. Prints the name of each check; a wrong one ends the program.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "kernels.hpp"
#include "noise.hpp"
#include "products.hpp"

namespace bitskip {
namespace {

std::mt19937_64 generator(20);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float uniform(float bound) { return std::uniform_real_distribution<float>(-bound, bound)(generator); }

// Kinds of vectors that have broken quantisers: ordinary, an outlier, zeros, one magnitude,
// subnormal, huge.
enum Kind { ordinary, outlier, zeros, level, subnormal, huge, KINDS };

Aligned<float> vector_of(int n, int kind, float bound = 3.0f) {
    Aligned<float> x(round_up(n, LANES));
    for (int i = 0; i < n; i++) switch (kind) {
        case zeros: x[i] = between(0, 1) ? 0.0f : -0.0f; break;
        case level: x[i] = between(0, 1) ? bound : -bound; break;
        case subnormal: x[i] = uniform(1.0f) * 0x1p-130f; break;
        case huge: x[i] = uniform(1.0f) * 0x1p126f; break;
        case outlier: x[i] = uniform(bound) * (between(0, 20) ? 1e-3f : 1.0f); break;
        default: x[i] = uniform(bound);
    }
    return x;
}

bool near(double actual, double expected, double relative, double absolute = 0.0) {
    return std::abs(actual - expected) <= relative * std::abs(expected) + absolute;
}

// --- vectors --------------------------------------------------------------------------------

void test_rms_norm(const Kernels& k) {
    for (int n : {1, 15, 16, 17, 31, 64, 100, 333})
        for (int kind : {ordinary, outlier, zeros, level, subnormal}) {
            const auto x = vector_of(n, kind), gain = vector_of(n, ordinary);
            const float eps = between(0, 1) ? 1e-5f : 1e-6f;
            Aligned<float> out(round_up(n, LANES));
            const float mean = k.rms_norm(x.data(), gain.data(), n, eps, out.data());
            double squares = 0.0;
            for (int i = 0; i < n; i++) squares += double(x[i]) * x[i];
            CHECK(near(mean, squares / n, 1e-6, 1e-38));
            const double inverse = 1.0 / std::sqrt(squares / n + eps);
            for (int i = 0; i < n; i++)
                CHECK(near(out[i], x[i] * inverse * gain[i], 1e-6, 1e-40));
            for (int i = n; i < round_up(n, LANES); i++) CHECK(out[i] == 0.0f);
        }
    const auto x = vector_of(48, huge), gain = vector_of(48, ordinary);
    Aligned<float> out(48);
    CHECK(std::isinf(k.rms_norm(x.data(), gain.data(), 48, 1e-5f, out.data())));
}

// a = max|x|, at least 1e-6; q = round-half-even((x · limit) / a), each step in float32, ±limit.
float quantised(const Aligned<float>& x, int n, int limit, std::vector<int>& q) {
    float peak = 1e-6f;
    for (int i = 0; i < n; i++) peak = std::max(peak, std::abs(x[i]));
    q.assign(n, 0);
    for (int i = 0; i < n; i++) {
        const float rounded = std::nearbyint(x[i] * float(limit) / peak);
        q[i] = int(std::min(std::max(rounded, -float(limit)), float(limit)));
    }
    return peak;
}

void test_quantise(const Kernels& k) {
    for (int n : {1, 16, 17, 127, 128, 129, 700})
        for (int kind = 0; kind < KINDS; kind++) {
            auto x = vector_of(n, kind);
            if (kind == ordinary) {  // ties of rounding: halves of the step
                x[0] = 127.0f;
                for (int i = 1; i < n; i++) x[i] = float(between(-253, 253)) * 0.5f;
            }
            std::vector<int> expected;
            const int padded = round_up(n, BLOCK);
            float peak = 0.0f;
            for (int limit : {7, 127}) {
                peak = quantised(x, n, limit, expected);
                Aligned<int8_t> q(padded);
                std::fill(q.data(), q.data() + padded, int8_t(99));
                const Quantised result = k.quantise(x.data(), n, padded, limit, q.data());
                CHECK(result.peak == peak);
                int32_t sum = 0;
                for (int i = 0; i < padded; i++) {
                    CHECK(q[i] == (i < n ? expected[i] : 0));
                    sum += q[i];
                }
                CHECK(result.sum == sum);
            }

            Aligned<int8_t> cached(round_up(n, LANES));
            CHECK(k.store_int8(x.data(), round_up(n, LANES), cached.data()) == peak / 127.0f);
            for (int i = 0; i < n; i++) CHECK(cached[i] == expected[i]);

            const int limit = between(0, 1) ? 8191 : between(200, 8000);
            const float wide_peak = quantised(x, n, limit, expected);
            Aligned<int16_t> wide(padded);
            CHECK(k.quantise_wide(x.data(), n, padded, limit, wide.data()) == wide_peak);
            for (int i = 0; i < padded; i++) CHECK(wide[i] == (i < n ? expected[i] : 0));
        }
    for (float odd : {INFINITY, -INFINITY, NAN})
        for (int at : {0, 15, 16, 39}) {
            auto x = vector_of(40, ordinary);
            x[at] = odd;
            Aligned<int8_t> q(BLOCK);
            CHECK(!std::isfinite(k.quantise(x.data(), 40, BLOCK, 127, q.data()).peak));
            CHECK(!std::isfinite(k.store_int8(x.data(), 48, q.data())));
            CHECK(!std::isfinite(k.peak(x.data(), 48)));
            Aligned<uint16_t> halves(48);
            CHECK(!std::isfinite(k.store_half(x.data(), 48, halves.data())));
        }
}

// The butterflies one by one, rounded as they are.
void transform(std::vector<float>& x) {
    const size_t n = x.size();
    for (size_t h = 1; h < n; h *= 2)
        for (size_t i = 0; i < n; i++)
            if (!(i & h)) {
                const float u = x[i], v = x[i + h];
                x[i] = u + v;
                x[i + h] = u - v;
            }
}

void test_hadamard(const Kernels& k) {
    for (int n = 1; n <= 4096; n *= 2)
        for (int kind = 0; kind < KINDS; kind++) {
            auto x = vector_of(n, kind, kind == huge ? 0x1p100f : 3.0f);
            const float factor = between(0, 1) ? float(1.0 / std::sqrt(double(n))) : 1.0f;
            std::vector<float> expected(x.data(), x.data() + n);
            CHECK(k.peak(x.data(), n) ==
                  std::abs(*std::max_element(expected.begin(), expected.end(), [](float a, float b) {
                      return std::abs(a) < std::abs(b);
                  })));
            transform(expected);
            k.hadamard(x.data(), n, factor);
            for (int i = 0; i < n; i++) CHECK(x[i] == expected[i] * factor || kind == huge);
        }
    // Sums as wide as can be, of both signs: a constant, and the rows of the transform itself.
    for (int n : {1, 2, 16, 64, 2048, 4096, 65536})
        for (int limit : {7, 127})
            for (int kind = 0; kind < KINDS + 2; kind++) {
                auto x = vector_of(n, kind < KINDS ? kind : int(zeros));
                const int row = kind == KINDS ? 0 : between(0, n - 1);
                for (int i = 0; i < n && kind >= KINDS; i++)
                    x[i] = __builtin_parity(unsigned(i & row)) ? -2.0f : 2.0f;
                std::vector<int> q;
                const float peak = quantised(x, n, limit, q);
                std::vector<float> expected(q.begin(), q.end());
                transform(expected);  // exact
                int digits = 1;
                for (int64_t reach = 127; reach < int64_t(limit) * n; digits++)
                    reach = reach * DIGIT_BASE + 127;
                const int padded = round_up(n, BLOCK), stride = padded + BLOCK * between(0, 1);
                Aligned<int8_t> lines(ptrdiff_t(digits) * stride);
                std::fill(lines.data(), lines.data() + digits * stride, int8_t(99));
                std::vector<int32_t> sums(digits, 12345);
                CHECK(k.quantise_hadamard(x.data(), n, padded, limit, digits, lines.data(), stride,
                                          sums.data()) == peak);
                for (int i = 0; i < n; i++) {
                    int64_t value = 0;
                    for (int d = digits - 1; d >= 0; d--) {
                        const int digit = lines[d * stride + i];
                        CHECK(digit >= -127);
                        value = value * DIGIT_BASE + digit;
                    }
                    CHECK(value == int64_t(expected[i]));
                }
                for (int d = 0; d < digits; d++) {
                    int32_t sum = 0;
                    for (int i = 0; i < padded; i++) sum += lines[d * stride + i];
                    CHECK(sums[d] == sum);
                    for (int i = n; i < padded; i++) CHECK(lines[d * stride + i] == 0);
                }
            }
    auto x = vector_of(64, ordinary);
    x[40] = NAN;
    Aligned<int8_t> q(BLOCK);
    int32_t sum;
    CHECK(std::isnan(k.quantise_hadamard(x.data(), 64, BLOCK, 7, 1, q.data(), BLOCK, &sum)));
}

void test_exp(const Kernels& k) {
    for (int i = 0; i < 200000; i++) {
        const float z = -87.0f + 174.9f * float(i) / 200000.0f;
        const float e = k.sum_exp(&z, 1, 0.0f);
        CHECK(near(e, std::exp(double(z)), 2.5e-7));
    }
    for (float z : {-87.5f, -100.0f, -1e30f, -INFINITY}) CHECK(k.sum_exp(&z, 1, 0.0f) == 0.0f);
    const float zero = 0.0f;
    CHECK(k.sum_exp(&zero, 1, 0.0f) == 1.0f);
    for (int n : {1, 2, 15, 16, 17, 500}) {
        const auto z = vector_of(n, ordinary, 20.0f);
        const float peak = k.max_of(z.data(), n);
        CHECK(peak == *std::max_element(z.data(), z.data() + n));
        double sum = 0.0;
        for (int i = 0; i < n; i++) sum += std::exp(double(z[i]) - peak);
        CHECK(near(k.sum_exp(z.data(), n, peak), sum, 2e-6));
    }
}

void test_swiglu(const Kernels& k) {
    for (float bound : {0.01f, 5.0f, 90.0f, 1e4f}) {
        const int n = LANES * between(1, 9);
        const auto gate = vector_of(n, ordinary, bound), up = vector_of(n, ordinary);
        Aligned<float> out(n);
        k.swiglu(gate.data(), up.data(), n, out.data());
        for (int i = 0; i < n; i++) {
            const double silu = double(gate[i]) / (1.0 + std::exp(-double(gate[i])));
            // Below −87, e^−x no longer fits: silu is about 1e-35 there, not less.
            CHECK(near(out[i], silu * up[i], 6e-7, 1e-33));
        }
    }
}

// --- number formats -------------------------------------------------------------------------

double half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25)
                                      : std::ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

void test_formats(const Kernels& k) {
    Aligned<uint16_t> bits(LANES), back(LANES);
    Aligned<float> wide(LANES), between_two(LANES);
    for (int base = 0; base < 0x10000; base += LANES) {
        for (int i = 0; i < LANES; i++) bits[i] = uint16_t(base + i);
        k.widen(bits.data(), Dtype::bfloat16, LANES, wide.data());
        for (int i = 0; i < LANES; i++) {
            const uint32_t expected = uint32_t(bits[i]) << 16;
            CHECK(std::memcmp(&wide[i], &expected, 4) == 0);
        }
        if ((base & 0x7c00) == 0x7c00) continue;  // infinities and NaN are not stored
        k.widen(bits.data(), Dtype::float16, LANES, wide.data());
        for (int i = 0; i < LANES; i++) CHECK(wide[i] == half_value(bits[i]));
        CHECK(k.store_half(wide.data(), LANES, back.data()) <= 65504.0f);
        CHECK(std::memcmp(bits.data(), back.data(), LANES * 2) == 0);
        // Half way to the next half goes to the even one; a little off it, to the nearer.
        for (int side = -1; side <= 1; side++) {
            for (int i = 0; i < LANES; i++) {
                const double next = half_value(uint16_t(bits[i] + 1));
                const float middle = float((half_value(bits[i]) + next) / 2);
                between_two[i] = side ? std::nextafter(middle, side < 0 ? wide[i] : INFINITY *
                                                       (bits[i] & 0x8000 ? -1.0f : 1.0f))
                                      : middle;
            }
            k.store_half(between_two.data(), LANES, back.data());
            for (int i = 0; i < LANES; i++) {
                const int up = side < 0 ? 0 : side > 0 ? 1 : bits[i] & 1;
                CHECK(back[i] == uint16_t(bits[i] + up));
            }
        }
    }
    for (int i = 0; i < LANES; i++) wide[i] = i % 2 ? -65519.9f : 65520.0f;
    k.store_half(wide.data(), LANES, back.data());
    for (int i = 0; i < LANES; i++) CHECK(back[i] == (i % 2 ? 0xfbff : 0x7c00));
}

// --- products -------------------------------------------------------------------------------

void test_ternary(const Kernels& k) {
    for (Way way : ways_of(k))
        for (int blocks : {1, 2, 3, 4, 16, 17, 33})
            for (int outputs : {1, 31, 32, 33, 130}) {
                const int quads = (outputs + QUAD - 1) / QUAD, inputs = blocks * BLOCK;
                const int tiles = (outputs + TILE - 1) / TILE, rows = between(1, most_rows(way));
                const int extreme = between(0, 3);  // all +1 and all ±127: sums at their widest
                std::vector<int> trits(quads * QUAD * inputs);
                for (int& trit : trits) trit = extreme == 0 ? 1 : extreme == 1 ? -1 : between(-1, 1);
                Aligned<uint8_t> codes(trits.size() / 4);
                for (int o = 0; o < quads * QUAD; o++)
                    for (int i = 0; i < inputs; i++) {
                        // [quad][block][output of the quad][32 bytes], 4 codes of 32 neighbours.
                        const int block = i / BLOCK, byte = i % 32, field = i % BLOCK / 32;
                        const int at = ((o / QUAD * blocks + block) * QUAD + o % QUAD) * 32 + byte;
                        codes[at] |= uint8_t((trits[o * inputs + i] + 1) << 2 * field);
                    }
                Aligned<int8_t> q(ptrdiff_t(rows) * inputs);
                for (int i = 0; i < rows * inputs; i++)
                    q[i] = int8_t(extreme < 2 ? 127 : extreme == 2 ? (between(0, 1) ? 127 : -127)
                                                                   : between(-127, 127));
                const int begin = between(0, tiles - 1), end = between(begin, tiles);
                const int width = tiles * TILE;
                Aligned<int32_t> acc(ptrdiff_t(rows) * width);
                std::fill(acc.data(), acc.data() + rows * width, 0x5a5a5a5a);
                product(k, way, codes.data(), blocks, quads, q.data(), inputs, rows, begin, end,
                        acc.data(), width);
                for (int m = 0; m < rows; m++)
                    for (int o = 0; o < outputs; o++) {
                        int64_t sum = 0;
                        for (int i = 0; i < inputs; i++) sum += q[m * inputs + i] * trits[o * inputs + i];
                        const bool inside = o >= begin * TILE && o < end * TILE;
                        CHECK(acc[m * width + o] == (inside ? sum : 0x5a5a5a5a));
                    }
            }
}

void test_dense(const Kernels& k) {
    for (int n : {16, 48, 64, 128, 272, 2048}) {
        const int size = between(1, 9), rows = between(1, MAX_GEMM_ROWS);
        const int begin = between(0, size - 1), end = between(begin, size);
        const int limit = std::min<int64_t>(8191, 0x7fffffffLL / (127LL * n));
        Aligned<int8_t> w(size * n);
        Aligned<int16_t> x(rows * n);
        const bool extreme = between(0, 1);
        for (int i = 0; i < size * n; i++) w[i] = int8_t(extreme ? 127 : between(-127, 127));
        for (int i = 0; i < rows * n; i++) x[i] = int16_t(extreme ? limit : between(-limit, limit));
        const auto w_scale = vector_of(size, ordinary), x_scale = vector_of(rows, ordinary);
        std::vector<float> logits(rows * (end - begin) + 1, 7.0f);
        k.dense_int8(w.data(), w_scale.data(), n, begin, end, x.data(), n, x_scale.data(), rows,
                    logits.data(), end - begin);
        for (int m = 0; m < rows; m++)
            for (int v = begin; v < end; v++) {
                int64_t sum = 0;
                for (int i = 0; i < n; i++) sum += int64_t(w[v * n + i]) * x[m * n + i];
                CHECK(sum == int32_t(sum));
                CHECK(logits[m * (end - begin) + v - begin] ==
                      float(sum) * (x_scale[m] * w_scale[v]));
            }
        CHECK(logits.back() == 7.0f);

        const auto floats = vector_of(size * n, ordinary);
        std::vector<uint16_t> brief(size * n);
        for (int i = 0; i < size * n; i++) {
            uint32_t bits;
            std::memcpy(&bits, &floats[i], 4);
            brief[i] = uint16_t(bits >> 16);
        }
        const auto residuals = vector_of(rows * n, ordinary);
        for (Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
            const void* rows_of = dtype == Dtype::float32 ? static_cast<const void*>(floats.data())
                                                          : brief.data();
            const auto weight = [&](int i) {
                if (dtype == Dtype::float32) return floats[i];
                const uint32_t bits = uint32_t(brief[i]) << 16;
                float value;
                std::memcpy(&value, &bits, 4);
                return value;
            };
            k.dense_float(rows_of, dtype, n, begin, end, residuals.data(), n, rows, logits.data(),
                         end - begin);
            for (int m = 0; m < rows; m++)
                for (int v = begin; v < end; v++) {
                    double sum = 0.0, magnitude = 0.0;
                    for (int i = 0; i < n; i++) {
                        sum += double(weight(v * n + i)) * residuals[m * n + i];
                        magnitude += std::abs(double(weight(v * n + i)) * residuals[m * n + i]);
                    }
                    CHECK(near(logits[m * (end - begin) + v - begin], sum, 0.0, 1e-6 * magnitude));
                }
            Aligned<int8_t> packed(n);
            float peak = 0.0f;
            for (int i = 0; i < n; i++) peak = std::max(peak, std::abs(weight(i)));
            CHECK(k.pack_row(rows_of, dtype, n, packed.data()) == peak / 127.0f);
            for (int i = 0; i < n; i++)
                CHECK(packed[i] == std::nearbyint(weight(i) * 127.0f / peak));
        }
    }
    Aligned<float> nothing(32);
    Aligned<int8_t> packed(32);
    CHECK(k.pack_row(nothing.data(), Dtype::float32, 32, packed.data()) == 0.0f);
    for (int i = 0; i < 32; i++) CHECK(packed[i] == 0);
}

// --- attention ------------------------------------------------------------------------------

void test_attention(const Kernels& k) {
    for (int head_dim : {2, 10, 16, 32, 64, 128, 200})
        for (int block_size : {1, 3, 16})
            for (KvDtype dtype : {KvDtype::float32, KvDtype::float16, KvDtype::int8}) {
                Attention a{};
                a.group = between(1, 9);
                a.head_stride = round_up(head_dim, LANES);
                a.block_size = block_size;
                a.dtype = dtype;
                // Around the edges of blocks and of vectors.
                constexpr int EDGES[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 64, 65};
                a.num_keys = EDGES[between(0, 11)];
                a.score_stride = round_up(a.num_keys, LANES);
                const int num_blocks = (a.num_keys + block_size - 1) / block_size + 2;
                std::vector<int32_t> table(num_blocks);
                for (int i = 0; i < num_blocks; i++) table[i] = i;
                std::shuffle(table.begin(), table.end(), generator);
                a.blocks = table.data();

                const int cells = num_blocks * block_size;
                std::vector<double> exact[2];
                std::vector<Aligned<uint8_t>> stored(2, Aligned<uint8_t>(cells * a.head_stride * 4));
                std::vector<Aligned<float>> scales(2, Aligned<float>(cells));
                KvView* const views[] = {&a.keys, &a.values};
                const int size = size_of(dtype);
                for (int kv = 0; kv < 2; kv++) {
                    exact[kv].resize(cells * a.head_stride);
                    for (int cell = 0; cell < cells; cell++) {
                        const auto x = vector_of(head_dim, ordinary);
                        uint8_t* at = stored[kv].data() + cell * a.head_stride * size;
                        if (size == 4) {
                            std::memcpy(at, x.data(), a.head_stride * sizeof(float));
                        } else if (size == 2) {
                            k.store_half(x.data(), a.head_stride, reinterpret_cast<uint16_t*>(at));
                        } else {
                            scales[kv][cell] = k.store_int8(x.data(), a.head_stride,
                                                            reinterpret_cast<int8_t*>(at));
                        }
                        for (int i = 0; i < a.head_stride; i++)
                            exact[kv][cell * a.head_stride + i] =
                                size == 4   ? double(x.data()[i])
                                : size == 2 ? half_value(reinterpret_cast<uint16_t*>(at)[i])
                                            : double(reinterpret_cast<int8_t*>(at)[i]) * scales[kv][cell];
                    }
                    *views[kv] = {stored[kv].data(), scales[kv].data(),
                                  ptrdiff_t(block_size) * a.head_stride * size, block_size};
                }
                Aligned<float> queries(a.group * a.head_stride), out(a.group * a.head_stride);
                for (int g = 0; g < a.group; g++)
                    for (int i = 0; i < head_dim; i++)
                        queries[g * a.head_stride + i] = uniform(3.0f / std::sqrt(float(head_dim)));
                Aligned<float> scores(a.group * a.score_stride);
                a.queries = queries.data();
                a.scores = scores.data();
                a.out = out.data();
                k.attend(a);

                for (int g = 0; g < a.group; g++) {
                    const auto cell_of = [&](int p) {
                        return (table[p / block_size] * block_size + p % block_size) * a.head_stride;
                    };
                    std::vector<double> weights(a.num_keys);
                    double greatest = -1e300, total = 0.0;
                    for (int p = 0; p < a.num_keys; p++) {
                        for (int i = 0; i < head_dim; i++)
                            weights[p] += queries[g * a.head_stride + i] * exact[0][cell_of(p) + i];
                        greatest = std::max(greatest, weights[p]);
                    }
                    for (double& weight : weights) total += weight = std::exp(weight - greatest);
                    for (int i = 0; i < a.head_stride; i++) {
                        double mixed = 0.0;
                        for (int p = 0; p < a.num_keys; p++)
                            mixed += weights[p] / total * exact[1][cell_of(p) + i];
                        CHECK(near(out[g * a.head_stride + i], mixed, 0.0, 1e-5));
                    }
                }
            }
}

// --- noise ----------------------------------------------------------------------------------

void test_noise_bounds() {
    const NoiseBound bound;
    for (int i = 0; i < 200000; i++) {
        // Every kind of word, and both ends of the pieces that share a bound.
        const uint32_t word = i % 3 == 0 ? uint32_t(i) << 22 : i % 3 == 1 ? ~(uint32_t(i) << 22)
                                                                         : uint32_t(generator());
        CHECK(gumbel(word) <= bound(word) && bound(word) <= bound.greatest());
    }
    CHECK(gumbel(~0u) <= bound.greatest());
}

// The first that this machine has, or another way of the same instructions.
void test_choice() {
    for (int first = 0; first < NUM_ISAS; first++) {
        int expected = first;
        while (!ISAS[expected].runs_here()) expected++;
        const std::string chosen = fastest_kernels(first).name, name = ISAS[expected].kernels->name;
        CHECK(chosen == name || (name == "avx2" && chosen == "avx2-lookup"));
    }
}

int main() {
    test_noise_bounds();
    for (int i = 0; i < NUM_ISAS; i++) {
        if (!ISAS[i].runs_here()) continue;
        const Kernels& kernels = *ISAS[i].kernels;
        for (auto* test : {test_rms_norm, test_quantise, test_hadamard, test_exp, test_swiglu, test_formats,
                           test_ternary, test_dense, test_attention})
            test(kernels);
        std::printf("%s: all kernels as the formulas say\n", kernels.name);
    }
    test_choice();
    return 0;
}

}  // namespace
}  // namespace bitskip

int main() { return bitskip::main(); }
