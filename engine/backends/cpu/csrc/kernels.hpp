// The arithmetic of one instruction set, as a table of functions.
//
// All instruction sets give the same bits. Integer sums are exact in any order. Float sums run
// over 16 virtual lanes, element i in lane i mod 16, with explicit fused multiply-adds, and end in
// one fixed tree; everything else is IEEE elementwise arithmetic.
//
// Vectors of floats are padded to a multiple of LANES with zeros, and 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitskip {

constexpr int LANES = 16;
constexpr int BLOCK = 128;       // inputs of one block of packed codes
constexpr int QUAD = 4;          // outputs whose codes lie together
constexpr int MAX_GEMM_ROWS = 8; // activation rows of one call of `ternary`
constexpr int TILE = 32;         // outputs whose codes lie together when products go by look-up
constexpr int LOOKUP_ROWS = 16;  // activation rows of one call of `by_sums`
constexpr int LOOKUP_TILES = 64; // and its tiles
constexpr int DIGIT_BASE = 254;  // of integers beyond 8 bits: digits in ±127
// Tables of 8 byte positions, then the narrow and wide sums of all outputs.
constexpr ptrdiff_t LOOKUP_SCRATCH = LOOKUP_ROWS * (256 * 8 * 2 + LOOKUP_TILES * TILE * (2 + 4));

// How many pieces of a size it takes.
template <class T>
static constexpr T pieces(T count, T size) {
    return (count + size - 1) / size;
}

template <class T>
static constexpr T round_up(T value, T multiple) {
    return pieces(value, multiple) * multiple;
}

enum class Dtype { float32, float16, bfloat16, int8 };
constexpr int size_of(Dtype dtype) {
    return dtype == Dtype::float32 ? 4 : dtype == Dtype::int8 ? 1 : 2;
}

enum class KvDtype { float32, float16, int8 };
constexpr int size_of(KvDtype dtype) {
    return dtype == KvDtype::float32 ? 4 : dtype == KvDtype::float16 ? 2 : 1;
}

// An activation vector of up to 8 bits: x ≈ q · peak / limit.
struct Quantised {
    float peak;   // max |x|, at least 1e-6; NaN or infinite if any x is
    int32_t sum;  // Σ q
};

// K or V of one layer and one K/V head: position p lies in block blocks[p / block_size].
struct KvView {
    const uint8_t* data;
    const float* scales;       // int8 only: one per position
    ptrdiff_t block_stride;    // bytes from block to block
    ptrdiff_t scale_stride;    // scales from block to block
};

// The query heads of one row that share a K/V head.
struct Attention {
    const float* queries;  // group × head_stride, already divided by √head_dim
    int group;
    int head_stride;       // a head's size padded to LANES: also the elements of a cached position
    const int32_t* blocks;
    int block_size;
    int num_keys;
    KvDtype dtype;
    KvView keys, values;
    float* scores;         // scratch, group × score_stride
    int score_stride;      // at least num_keys padded to LANES
    float* out;            // group × head_stride
};

// Ternary products by look-up: acc = Σ q · trit for the outputs of tiles begin..end. Their codes
// lie as [tile][block][byte position][TILE outputs].
struct Lookups {
    // One tile from the packed layout, of which it has `quads` quads; the rest becomes zero.
    void (*copy_tile)(const uint8_t* codes, int blocks, int quads, uint8_t* tile);
    // One activation row's tables, 64 bytes for every 4 inputs.
    void (*digit_tables)(const int8_t* q, int blocks, int8_t* tables);
    // That row's product: `acc` is that of output 0, whatever `begin` is.
    void (*by_digits)(const uint8_t* tiles, int blocks, const int8_t* tables, int begin, int end,
                      int32_t* acc);
    // Up to `width` (8 or 16) rows, interleaved as x[i][width], and at most LOOKUP_TILES tiles.
    void (*by_sums)(const uint8_t* tiles, int blocks, const int16_t* x, int width, int rows,
                    int begin, int end, char* scratch, int32_t* acc, ptrdiff_t acc_stride);
};

struct Kernels {
    const char* name;

    // out = x / √(mean(x²) + eps) · gain over n elements; returns mean(x²).
    float (*rms_norm)(const float* x, const float* gain, int n, float eps, float* out);
    // max |x| over n elements, padded with zeros; infinite or NaN as soon as one of them is.
    float (*peak)(const float* x, int n);
    // q = round-half-even(x · limit / peak); elements n..padded of q become 0. limit ≤ 127.
    Quantised (*quantise)(const float* x, int n, int padded, int limit, int8_t* q);
    // The same in 16 bits; returns the peak.
    float (*quantise_wide)(const float* x, int n, int padded, int limit, int16_t* q);
    // The same, and then the un-normalised Hadamard transform of q, exact below 2²⁴, in `digits`
    // rows of balanced digits of base DIGIT_BASE, the lowest first; sums[d] is that of row d.
    // Returns the peak; x is lost.
    float (*quantise_hadamard)(float* x, int n, int padded, int limit, int digits, int8_t* q,
                               ptrdiff_t q_stride, int32_t* sums);
    // The Walsh–Hadamard transform in place, times `factor`; n is a power of two. Butterflies
    // (u, v) → (u + v, u − v) over strides 1, 2, 4, … n / 2, in this order. Where n is less than
    // LANES, the elements up to there are scratch.
    void (*hadamard)(float* x, int n, float factor);
    // out = gate / (1 + e^−gate) · up.
    void (*swiglu)(const float* gate, const float* up, int n, float* out);
    void (*attend)(const Attention& task);
    // Rounds one position of one head on its way into the cache. The one returns the peak, the
    // other the scale.
    float (*store_half)(const float* x, int n, uint16_t* out);
    float (*store_int8)(const float* x, int n, int8_t* out);

    // acc[m][o] = Σ q[m][i] · code[o][i] for the outputs of quads begin..end, rows ≤ 8. `codes` is
    // the packed layout of engine/checkpoint/ternary.py. Null where products go by look-up.
    void (*ternary)(const uint8_t* codes, int blocks, const int8_t* q, ptrdiff_t q_stride, int rows,
                    int begin, int end, int32_t* acc, ptrdiff_t acc_stride);

    // Where products go by look-up instead; null elsewhere.
    const Lookups* lookups;

    // out[m][v − begin] of weight rows begin..end, rows ≤ 8; n is a multiple of LANES.
    // int8: float(Σ x · w) · (x_scale[m] · w_scale[v]), the sum exact in 32 bits.
    void (*dense_int8)(const int8_t* w, const float* w_scale, int n, int begin, int end,
                       const int16_t* x, ptrdiff_t x_stride, const float* x_scale, int rows,
                       float* out, ptrdiff_t out_stride);
    void (*dense_float)(const void* w, Dtype dtype, int n, int begin, int end, const float* x,
                        ptrdiff_t x_stride, int rows, float* out, ptrdiff_t out_stride);
    // One row of weights to 8 bits; returns its scale.
    float (*pack_row)(const void* w, Dtype dtype, int n, int8_t* out);
    // A row of an embedding to floats.
    void (*widen)(const void* in, Dtype dtype, int n, float* out);
    // Σ e^(z − peak) over n logits; n need not be padded.
    float (*sum_exp)(const float* z, int n, float peak);
    float (*max_of)(const float* z, int n);
};

// The instruction sets compiled in, best first; each entry says whether this machine has it.
struct Isa {
    const Kernels* kernels;
    bool (*runs_here)();
};
extern const Isa ISAS[];
extern const int NUM_ISAS;

// The fastest of ISAS[first] and those after it: the first that this machine has, except where
// measuring must tell, which takes a few ms.
const Kernels& fastest_kernels(int first = 0);

}  // namespace bitskip
