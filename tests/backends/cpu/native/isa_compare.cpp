// Compares the functions of instruction sets with the scalar code's, bit for bit, on random shapes
// and on random and extreme values. What lies behind an output must stay untouched.
//
//     isa_compare ROUNDS [NAME...]
//
// Without names: all that this machine runs. A name is taken at its word, so that emulated code
// can be compared. `mutant` is the scalar code with two defects, which must be found. Exits with 1
// and one line per differing function if any differs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.hpp"

namespace bitskip {
namespace {

constexpr int MAX_N = 700;

// Zeros on whole cache lines, aligned to them, and one line more that nobody may write.
template <class T>
class Buffer {
public:
    explicit Buffer(size_t count = 0) : lines_((count * sizeof(T) + 63) / 64 + 1) {
        std::memset(&lines_.back(), 0xa5, sizeof(Line));
    }
    T* data() { return reinterpret_cast<T*>(lines_.data()); }
    const T* data() const { return reinterpret_cast<const T*>(lines_.data()); }
    size_t size() const { return lines_.size() * (64 / sizeof(T)); }
    T& operator[](size_t i) { return data()[i]; }

private:
    struct alignas(64) Line {
        unsigned char bytes[64];
    };
    std::vector<Line> lines_;
};

bool same(float a, float b) {
    return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}
template <class T>
bool same(T a, T b) {
    static_assert(std::is_integral<T>::value, "compared as integers");
    return a == b;
}

class Comparison {
public:
    Comparison(const Kernels& scalar, const Kernels& other) : scalar_(scalar), other_(other) {}

    const Kernels& other() const { return other_; }

    uint64_t random() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    int between(int low, int high) { return low + int(random() % uint64_t(high - low + 1)); }
    bool chance(int percent) { return between(1, 100) <= percent; }

    // `count` numbers of one of several kinds, padded with zeros to whole lanes.
    Buffer<float> floats(int count) {
        Buffer<float> values(round_up(count, LANES));
        const int kind = between(0, 9);
        const float scale = std::ldexp(1.0f, between(-30, 20));
        for (int i = 0; i < count; i++) values[i] = number(kind, scale);
        return values;
    }

    // Bits of `count` elements of a 16-bit float: any at all, or (`finite`) none above a half's 1.
    Buffer<uint16_t> halves(int count, bool finite = false) {
        Buffer<uint16_t> values(round_up(count, LANES));
        for (int i = 0; i < count; i++)
            values[i] = uint16_t(random()) & (finite ? 0xbbff : 0xffff);
        return values;
    }

    // `count` integers in ±limit: random ones, or nothing but extremes.
    template <class T>
    Buffer<T> integers(size_t count, int limit) {
        Buffer<T> values(count);
        const int kind = between(0, 3);
        for (size_t i = 0; i < count; i++)
            values[i] = T(kind == 0   ? limit
                          : kind == 1 ? (chance(50) ? limit : -limit)
                                      : between(-limit, limit));
        return values;
    }

    // Runs `f(kernels, out)` for both, on outputs alike, and compares them with what lies behind.
    template <class T, class F>
    void run(const char* function, size_t count, F f) {
        Buffer<T> expected(count), actual(count);
        f(scalar_, expected.data());
        f(other_, actual.data());
        num_cases_[function]++;
        for (size_t i = 0; i < expected.size(); i++) {
            if (same(expected[i], actual[i])) continue;
            if (num_failures_[function]++ == 0)
                std::printf("%s: %s differs from scalar: element %zu of %zu is %.9g, not %.9g\n",
                            other_.name, function, i, count, double(actual[i]),
                            double(expected[i]));
            return;
        }
    }

    bool report() const {
        int total = 0;
        for (const auto& entry : num_cases_) total += entry.second;
        for (const auto& entry : num_failures_)
            std::printf("%s: %s: %d of %d cases differ\n", other_.name, entry.first.c_str(),
                        entry.second, num_cases_.at(entry.first));
        if (num_failures_.empty())
            std::printf("%s: %zu functions, %d cases, all equal\n", other_.name, num_cases_.size(),
                        total);
        return num_failures_.empty();
    }

private:
    float number(int kind, float scale) {
        const float uniform = float(int64_t(random() >> 39) - (1 << 24)) / float(1 << 24);
        switch (kind) {
            case 0: return std::ldexp(uniform, between(-148, 127));         // every magnitude
            case 1: return std::ldexp(uniform, -126);                       // subnormal
            case 2: return chance(50) ? 0.0f : -0.0f;
            case 3: return float(between(-254, 254)) * 0.5f;                // ties of rounding
            case 4: return chance(50) ? scale : -scale;
            case 5: return chance(3) ? odd_number() : uniform;
            case 6: return uniform * 100.0f;                                // both ends of e^x
            case 7: return chance(90) ? uniform * 1e-3f : uniform * 1e3f;   // outliers
            default: return uniform * scale;
        }
    }
    float odd_number() {
        switch (between(0, 3)) {
            case 0: return std::numeric_limits<float>::infinity();
            case 1: return -std::numeric_limits<float>::infinity();
            case 2: return std::numeric_limits<float>::max();
            default: return std::numeric_limits<float>::quiet_NaN();
        }
    }

    const Kernels& scalar_;
    const Kernels& other_;
    uint64_t state_ = 1;
    std::map<std::string, int> num_cases_, num_failures_;
};

void vectors(Comparison& c) {
    const int n = c.between(1, MAX_N), whole = round_up(n, LANES);
    const auto x = c.floats(n), y = c.floats(n);
    const float eps = c.chance(50) ? 1e-5f : 1e-6f;
    c.run<float>("rms_norm", whole, [&](const Kernels& k, float* out) {
        k.rms_norm(x.data(), y.data(), n, eps, out);
    });
    c.run<float>("swiglu", whole, [&](const Kernels& k, float* out) {
        k.swiglu(x.data(), y.data(), whole, out);
    });
    c.run<uint16_t>("store_half", whole, [&](const Kernels& k, uint16_t* out) {
        k.store_half(x.data(), whole, out);
        for (int i = 0; i < whole; i++)  // one NaN is as good as another
            if ((out[i] & 0x7fff) > 0x7c00) out[i] = 0x7e00;
    });
    c.run<int8_t>("store_int8", whole, [&](const Kernels& k, int8_t* out) {
        k.store_int8(x.data(), whole, out);
    });
    c.run<float>("store_int8", 1, [&](const Kernels& k, float* out) {
        Buffer<int8_t> q(whole);
        out[0] = k.store_int8(x.data(), whole, q.data());
    });
    c.run<float>("max_of", 1, [&](const Kernels& k, float* out) {
        out[0] = k.max_of(x.data(), n);
    });
    // e^−87 is the least that does not become 0.
    const float peak = *std::max_element(x.data(), x.data() + n) + (c.chance(30) ? 87.0f : 0.0f);
    c.run<float>("sum_exp", 1, [&](const Kernels& k, float* out) {
        out[0] = k.sum_exp(x.data(), n, peak);
    });
}

void quantisations(Comparison& c) {
    const int n = c.between(1, MAX_N), padded = round_up(n, BLOCK);
    const int wide = round_up(n, LANES) + LANES * c.between(0, 1);
    const int limit = std::min<int>(8191, std::numeric_limits<int32_t>::max() / (127 * n));
    const auto x = c.floats(n);
    const int narrow = c.chance(50) ? 127 : 7;
    c.run<int8_t>("quantise", padded, [&](const Kernels& k, int8_t* q) {
        k.quantise(x.data(), n, padded, narrow, q);
    });
    c.run<float>("quantise", 2, [&](const Kernels& k, float* out) {
        Buffer<int8_t> q(padded);
        const Quantised result = k.quantise(x.data(), n, padded, narrow, q.data());
        out[0] = result.peak;
        out[1] = float(result.sum);
    });
    c.run<int16_t>("quantise_wide", wide, [&](const Kernels& k, int16_t* q) {
        k.quantise_wide(x.data(), n, wide, limit, q);
    });
    c.run<float>("quantise_wide", 1, [&](const Kernels& k, float* out) {
        Buffer<int16_t> q(wide);
        out[0] = k.quantise_wide(x.data(), n, wide, limit, q.data());
    });
}

void hadamard(Comparison& c) {
    const int n = 1 << c.between(0, 12), padded = round_up(n, BLOCK);
    const int limit = c.chance(50) ? 127 : 7, digits = c.between(n > 128 ? 3 : 2, 4);
    const ptrdiff_t stride = padded + 64 * c.between(0, 2);
    const auto x = c.floats(n);
    const float factor = c.chance(50) ? 1.0f / std::sqrt(float(n)) : 1.0f;
    c.run<float>("peak", 1, [&](const Kernels& k, float* out) {
        out[0] = k.peak(x.data(), round_up(n, LANES));
    });
    c.run<float>("hadamard", round_up(n, LANES), [&](const Kernels& k, float* out) {
        std::copy_n(x.data(), round_up(n, LANES), out);
        k.hadamard(out, n, factor);
    });
    c.run<int8_t>("quantise_hadamard", digits * stride, [&](const Kernels& k, int8_t* q) {
        auto lost = x;
        std::vector<int32_t> sums(digits);
        k.quantise_hadamard(lost.data(), n, padded, limit, digits, q, stride, sums.data());
    });
    c.run<int32_t>("quantise_hadamard", digits, [&](const Kernels& k, int32_t* sums) {
        auto lost = x;
        Buffer<int8_t> q(digits * stride);
        k.quantise_hadamard(lost.data(), n, padded, limit, digits, q.data(), stride, sums);
    });
}

void attention(Comparison& c) {
    constexpr int HEAD_DIMS[] = {32, 64, 128, 6, 20, 72, 100, 250};
    constexpr int BLOCK_SIZES[] = {1, 3, 16, 32};
    Attention a{};
    a.group = c.between(1, 9);
    const int head_dim = HEAD_DIMS[c.between(0, 7)];
    a.head_stride = round_up(head_dim, LANES);
    a.block_size = BLOCK_SIZES[c.between(0, 3)];
    a.num_keys = c.between(1, 100);
    constexpr KvDtype DTYPES[] = {KvDtype::float32, KvDtype::float16, KvDtype::int8};
    a.dtype = DTYPES[c.between(0, 2)];
    a.score_stride = round_up(a.num_keys, LANES) + LANES * c.between(0, 1);

    const int num_blocks = (a.num_keys + a.block_size - 1) / a.block_size + 2;
    Buffer<int32_t> table(num_blocks);
    for (int i = 0; i < num_blocks; i++) table[i] = i;
    for (int i = num_blocks - 1; i > 0; i--) std::swap(table[i], table[c.between(0, i)]);
    a.blocks = table.data();

    const int elements = a.block_size * a.head_stride;
    Buffer<float> queries(a.group * a.head_stride), scales[2];
    Buffer<float> floats[2];
    Buffer<uint16_t> halves[2];
    Buffer<int8_t> bytes[2];
    for (int g = 0; g < a.group; g++) {
        const auto x = c.floats(head_dim);
        std::copy_n(x.data(), a.head_stride, queries.data() + g * a.head_stride);
    }
    a.queries = queries.data();
    KvView* const views[] = {&a.keys, &a.values};
    for (int i = 0; i < 2; i++) {
        const void* data;
        if (a.dtype == KvDtype::int8) {
            bytes[i] = c.integers<int8_t>(size_t(num_blocks) * elements, 127);
            scales[i] = c.floats(num_blocks * a.block_size);
            data = bytes[i].data();
        } else if (a.dtype == KvDtype::float16) {
            halves[i] = c.halves(num_blocks * elements, true);
            data = halves[i].data();
        } else {
            floats[i] = c.floats(num_blocks * elements);
            data = floats[i].data();
        }
        *views[i] = {static_cast<const uint8_t*>(data), scales[i].data(),
                     ptrdiff_t(elements) * size_of(a.dtype), a.block_size};
    }
    c.run<float>("attend", a.group * a.head_stride, [&](const Kernels& k, float* out) {
        Buffer<float> scores(a.group * a.score_stride);
        Attention task = a;
        task.scores = scores.data();
        task.out = out;
        k.attend(task);
    });
}

// Random codes of quads · blocks · BLOCK inputs, or nothing but twos.
Buffer<uint8_t> codes_of(Comparison& c, int quads, int blocks) {
    Buffer<uint8_t> codes(size_t(quads) * blocks * BLOCK);
    const bool all_two = c.chance(25);
    for (int i = 0; i < quads * blocks * BLOCK; i++)
        for (int k = 0; k < 4; k++) codes[i] |= uint8_t((all_two ? 2 : c.between(0, 2)) << 2 * k);
    return codes;
}

void ternary(Comparison& c) {
    if (!c.other().ternary) return;
    const int blocks = c.between(1, 36), quads = c.between(1, 9), rows = c.between(1, MAX_GEMM_ROWS);
    const int begin = c.between(0, quads - 1), end = c.between(begin, quads);
    const ptrdiff_t q_stride = blocks * BLOCK + 64 * c.between(0, 2);
    const ptrdiff_t acc_stride = quads * QUAD + LANES * c.between(0, 2);
    const auto codes = codes_of(c, quads, blocks);
    const auto q = c.integers<int8_t>(rows * q_stride, 127);
    c.run<int32_t>("ternary", rows * acc_stride, [&](const Kernels& k, int32_t* acc) {
        k.ternary(codes.data(), blocks, q.data(), q_stride, rows, begin, end, acc, acc_stride);
    });
}

// Products by look-up are of trits, codes less one.
void lookups(Comparison& c) {
    if (!c.other().lookups) return;
    const Lookups& lookups = *c.other().lookups;
    const int blocks = c.between(1, 36), quads = c.between(1, 40), rows = c.between(1, LOOKUP_ROWS);
    const int width = rows > LOOKUP_ROWS / 2 || c.chance(20) ? LOOKUP_ROWS : LOOKUP_ROWS / 2;
    constexpr int QUADS = TILE / QUAD;
    const int tiles = (quads + QUADS - 1) / QUADS;
    const int begin = c.between(0, tiles - 1), end = c.between(begin, tiles);
    const int inputs = blocks * BLOCK;
    const ptrdiff_t acc_stride = tiles * TILE + LANES * c.between(0, 2);
    const auto codes = codes_of(c, quads, blocks);
    const auto q = c.integers<int8_t>(size_t(rows) * inputs, 127);

    Buffer<uint8_t> tiled(size_t(tiles) * inputs * QUADS);
    for (int t = 0; t < tiles; t++)
        lookups.copy_tile(codes.data() + size_t(t) * QUADS * inputs, blocks,
                          std::min(QUADS, quads - t * QUADS),
                          tiled.data() + size_t(t) * inputs * QUADS);
    const auto expect = [&](const Kernels& scalar, int32_t* acc) {
        for (int m = 0; m < rows; m++) {
            const int8_t* row = q.data() + ptrdiff_t(m) * inputs;
            int32_t sum = 0;
            for (int i = 0; i < inputs; i++) sum += row[i];
            int32_t* out = acc + m * acc_stride;
            scalar.ternary(codes.data(), blocks, row, inputs, 1, begin * QUADS,
                           std::min(end * QUADS, quads), out, acc_stride);
            for (int o = begin * TILE; o < std::min(end * TILE, quads * QUAD); o++) out[o] -= sum;
        }
    };
    c.run<int32_t>("by_digits", rows * acc_stride, [&](const Kernels& k, int32_t* acc) {
        if (!k.lookups) return expect(k, acc);
        Buffer<int8_t> tables(size_t(inputs) * 16);
        for (int m = 0; m < rows; m++) {
            lookups.digit_tables(q.data() + ptrdiff_t(m) * inputs, blocks, tables.data());
            lookups.by_digits(tiled.data(), blocks, tables.data(), begin, end, acc + m * acc_stride);
        }
    });
    c.run<int32_t>("by_sums", rows * acc_stride, [&](const Kernels& k, int32_t* acc) {
        if (!k.lookups) return expect(k, acc);
        Buffer<int16_t> columns(size_t(inputs) * width);
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < inputs; i++)
                columns[size_t(i) * width + m] = q.data()[ptrdiff_t(m) * inputs + i];
        Buffer<char> scratch(LOOKUP_SCRATCH);
        lookups.by_sums(tiled.data(), blocks, columns.data(), width, rows, begin, end,
                        scratch.data(), acc, acc_stride);
    });
}

void dense(Comparison& c) {
    const int n = LANES * c.between(1, 40), size = c.between(1, 12);
    const int rows = c.between(1, MAX_GEMM_ROWS);
    const int begin = c.between(0, size - 1), end = c.between(begin, size);
    const int limit = std::min<int>(8191, std::numeric_limits<int32_t>::max() / (127 * n));
    const ptrdiff_t x_stride = n + LANES * c.between(0, 2), stride = size + c.between(0, 5);
    {
        const auto w = c.integers<int8_t>(size_t(size) * n, 127);
        const auto x = c.integers<int16_t>(rows * x_stride, limit);
        const auto w_scale = c.floats(size), x_scale = c.floats(rows);
        c.run<float>("dense_int8", rows * stride, [&](const Kernels& k, float* logits) {
            k.dense_int8(w.data(), w_scale.data(), n, begin, end, x.data(), x_stride,
                        x_scale.data(), rows, logits, stride);
        });
    }
    const auto wide = c.floats(size * n);
    const auto narrow = c.halves(size * n), tame = c.halves(size * n, true);
    const auto x = c.floats(int(rows * x_stride));
    for (Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16}) {
        const auto rows_of = [&](const Buffer<uint16_t>& bits) {
            return dtype == Dtype::float32 ? static_cast<const void*>(wide.data()) : bits.data();
        };
        c.run<float>("dense_float", rows * stride, [&](const Kernels& k, float* logits) {
            k.dense_float(rows_of(tame), dtype, n, begin, end, x.data(), x_stride, rows, logits,
                         stride);
        });
        c.run<int8_t>("pack_row", n, [&](const Kernels& k, int8_t* out) {
            k.pack_row(rows_of(tame), dtype, n, out);
        });
        c.run<float>("pack_row", 1, [&](const Kernels& k, float* out) {
            Buffer<int8_t> q(n);
            out[0] = k.pack_row(rows_of(tame), dtype, n, q.data());
        });
        c.run<float>("widen", n, [&](const Kernels& k, float* out) {
            k.widen(rows_of(narrow), dtype, n, out);
        });
    }
}

// The scalar code, but sums in plain order, and without the last block.
const Kernels* mutant(const Kernels* scalar) {
    static Kernels table = *scalar;
    static const Kernels* const original = scalar;
    table.name = "mutant";
    table.sum_exp = [](const float* z, int n, float peak) {
        float sum = 0.0f;
        for (int i = 0; i < n; i++) sum += original->sum_exp(z + i, 1, peak);
        return sum;
    };
    table.ternary = [](const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride,
                       int rows, int begin, int end, int32_t* acc, ptrdiff_t acc_stride) {
        Buffer<int8_t> shorter(rows * q_stride);
        std::copy_n(q, rows * q_stride, shorter.data());
        for (int m = 0; m < rows; m++)
            std::fill_n(shorter.data() + m * q_stride + (blocks - 1) * BLOCK, BLOCK, int8_t(0));
        original->ternary(codes, blocks, shorter.data(), q_stride, rows, begin, end, acc,
                          acc_stride);
    };
    return &table;
}

const Kernels* find(const std::string& name) {
    for (int i = 0; i < NUM_ISAS; i++)
        if (name == ISAS[i].kernels->name) return ISAS[i].kernels;
    return nullptr;
}

int main(int argc, char** argv) {
    const Kernels* const scalar = find("scalar");
    std::vector<const Kernels*> chosen;
    for (int i = 2; i < argc; i++) {
        chosen.push_back(std::strcmp(argv[i], "mutant") == 0 ? mutant(scalar) : find(argv[i]));
        if (!chosen.back()) {
            std::fprintf(stderr, "%s is not compiled in\n", argv[i]);
            return 2;
        }
    }
    if (argc <= 2)
        for (int i = 0; i < NUM_ISAS; i++)
            if (ISAS[i].runs_here()) chosen.push_back(ISAS[i].kernels);
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 0;
    if (rounds < 1) {
        std::fprintf(stderr, "usage: isa_compare ROUNDS [NAME...]\n");
        return 2;
    }
    bool equal = true;
    for (const Kernels* kernels : chosen) {
        Comparison comparison(*scalar, *kernels);
        for (int i = 0; i < rounds; i++)
            for (auto* part : {vectors, quantisations, hadamard, attention, ternary, lookups, dense})
                part(comparison);
        equal = comparison.report() && equal;
    }
    return equal ? 0 : 1;
}

}  // namespace
}  // namespace bitskip

int main(int argc, char** argv) { return bitskip::main(argc, argv); }
