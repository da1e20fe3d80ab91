// A model on this machine: weights, K/V memory, exit states, and the two operations on them.
//
// A sweep moves rows through layers; the head turns residuals into logits or tokens. Both are
// single calls that the whole team runs together, phase by phase.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pages.hpp"
#include "team.hpp"

namespace bitskip {

// What linears hold: trits, floats, or 8-bit integers with a scale per row.
enum class Linears { ternary, floats, int8 };
// Where a ternary linear's input is transformed; `before` quantisation or `after` it.
enum class Hadamard { none, before, after };

struct Shape {
    int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, positions;
    float eps;
    bool exit_norm;
    Linears linears = Linears::ternary;
    int activation_max = 127;  // of what ternary linears multiply: 127, or 7
    Hadamard hadamard = Hadamard::none;

    int q_size() const { return heads * head_dim; }
    int kv_size() const { return kv_heads * head_dim; }
};

// A dense matrix: embedding, head, or a linear.
struct Table {
    const uint8_t* data;
    Dtype dtype;
    int stride;                     // elements of a row: padded to LANES with zeros
    const float* scales = nullptr;  // int8 only: one per row

    const uint8_t* row(ptrdiff_t i) const { return data + i * stride * size_of(dtype); }
};

// 1 / √n: what makes a Hadamard transform its own inverse.
inline float orthonormal(int n) { return float(1.0 / std::sqrt(double(n))); }

// The most that quantised inputs may be for Σ x · w, w in ±127, to fit 32 bits.
inline int wide_limit(int inputs) {
    return int(std::min(int64_t(8191), 0x7fffffff / (int64_t(127) * inputs)));
}

// One linear: scale × (codes − 1), or a table.
struct Part {
    int outputs;
    const uint8_t* codes;  // as in the file, or in tiles
    float scale;
    Table table{};
    float norm = 1.0f;  // of a transform after quantisation
    int offset = 0;     // of its first output among those of its matrix

    int quads() const { return pieces(outputs, QUAD); }
    int tiles() const { return pieces(outputs, TILE); }
};

// Linears that share an input.
struct Matrix {
    std::vector<Part> parts;
    int inputs = 0;
    int outputs = 0;  // each part's rounded up to a tile

    void add(Part part) {
        part.offset = outputs;
        outputs += round_up(part.outputs, TILE);
        parts.push_back(part);
    }
    int blocks() const { return pieces(inputs, BLOCK); }
    ptrdiff_t tile_bytes() const { return ptrdiff_t(blocks()) * BLOCK / 4 * TILE; }
};

struct Layer {
    Matrix qkv, output, gate_up, down;
    std::vector<float> attention_norm, ffn_norm;  // padded

    std::array<Matrix*, 4> matrices() { return {&qkv, &output, &gate_up, &down}; }
};

struct Row {
    int table;  // index of its block table in the sweep
    int position, first, last;
    int token;   // −1: starts from `source`
    int source;  // exit state, or −1
    int target;  // exit state, or −1
};

// How one row's token is picked: argmax of z + temperature · noise.
struct Draw {
    double temperature;
    uint64_t seed;
    uint32_t position;
};

struct Pick {
    int id;
    float confidence;  // softmax probability, at temperature 1, of the likeliest id scored
};

class Model {
public:
    Model(Shape shape, const Kernels& kernels, int threads);

    // --- weights: pointers must stay valid as long as the model ---
    void set_layer(int index, Layer layer);
    void set_embedding(Table table) { embedding_ = table; }
    void set_final_norm(std::vector<float> gain) { final_norm_ = std::move(gain); }
    void set_rotary(const float* cos, const float* sin);  // each positions × head_dim / 2
    void set_head(Table table) { head_ = table; }
    // The first `rows` rows rounded to another dtype, bfloat16 or int8; the model keeps them, and
    // what they were is not read again.
    Table rounded(const Table& table, int rows, Dtype dtype);
    // After the head: its rows are copied if many of the ids are scattered.
    void set_draft_ids(std::vector<int> ids);
    // Arranges what was set for the kernels; if this returns true, layers are not read again from
    // where they were.
    bool finish();

    // --- memory ---
    void allocate(int blocks, int block_size, int states, KvDtype dtype);

    // --- work ---
    const Shape& shape() const { return shape_; }
    int block_count() const { return num_blocks_; }
    int block_size() const { return block_size_; }
    int state_count() const { return num_states_; }
    int draft_count() const { return int(draft_ids_.size()); }

    // Runs checked rows; `hidden` receives rows × hidden residuals. False if an activation stopped
    // being finite: the rows' results are then worthless.
    bool sweep(const std::vector<Row>& rows, const std::vector<std::vector<int32_t>>& tables,
               float* hidden);
    // Logits of `count` residuals (pointers to rows of `hidden` floats), count × V or × drafts.
    // False as above.
    bool logits(const float* const* residuals, const int* depths, int count, bool draft, float* out);
    // Tokens of the same.
    bool pick(const float* const* residuals, const int* depths, const Draw* draws, int count,
              bool draft, Pick* out);
    // Where the K/V of one layer of a block lies: keys and values, [kv head][position][element],
    // and, of an int8 cache, their scales, [kv head][position].
    struct Memory {
        const char* data;
        size_t bytes;
    };
    std::vector<Memory> kv_memory(int layer, int block) const;
    const float* state(int index) const { return states_.as<float>() + ptrdiff_t(index) * hidden_stride_; }

private:
    struct Segment {  // layers in which the same rows are active
        int first, last;
        std::vector<int> active;
        int lines;     // of 8-bit integers that they make: `digits_` each
        bool by_sums;  // whether there are enough of them for `Lookups::by_sums`

        int count() const { return int(active.size()); }
        // Lines go in groups of LOOKUP_ROWS; the last may be half as wide.
        int groups() const { return pieces(lines, LOOKUP_ROWS); }
        int width(int group) const {
            return lines - group * LOOKUP_ROWS > LOOKUP_ROWS / 2 ? LOOKUP_ROWS : LOOKUP_ROWS / 2;
        }
    };

    // Rows on their way through dense matrices: floats, and where weights are int8, integers.
    struct Inputs {
        const float* floats;
        const int16_t* wide;
        const float* steps;  // what 1 stands for, of each row's integers
        ptrdiff_t stride;
    };

    struct Best {
        double score;
        int slot;
        float logit;  // the greatest, whatever its noise
    };

    void copy_tiles();
    void tune();
    void plan(const std::vector<Row>& rows);
    void reserve(int rows);
    void run_layers(Team::Member& member, const Segment& segment);
    void gemm(Team::Member& member, const Segment& segment, const Matrix& matrix);
    void gemm_by_digits(Team::Member& member, const Segment& segment, const Matrix& matrix);
    void gemm_by_sums(Team::Member& member, const Segment& segment, const Matrix& matrix);
    void gemm_dense(Team::Member& member, const Segment& segment, const Matrix& matrix);
    // Dot products of `count` rows with rows begin..end of a table.
    void multiply(const Table& table, int begin, int end, const Inputs& inputs, int count,
                  float* out, ptrdiff_t out_stride) const;
    void normalise(const Segment& segment, int slot, const std::vector<float>& gain);
    // Puts what the next gemm multiplies, n elements padded to LANES, in its place; x is lost.
    void take_in(const Segment& segment, int slot, float* x, int n);
    void quantise(const Segment& segment, int slot, float* x, int n);
    // Makes the sweep fail unless `value` is finite.
    void expect_finite(float value);
    // One row of the last gemm as floats; `out` has room for whole lanes.
    void take_out(int slot, const Part& part, float* out) const;
    void add_residual(Team::Member& member, int slot, int row, const Matrix& matrix);
    // A row's integer sums, `digits_` lines of them, or its float ones.
    template <class T>
    T* sums_at(int slot) const {
        return acc_.as<T>() + ptrdiff_t(slot) * digits_ * acc_stride_;
    }
    void rotate_and_store(Team::Member& member, int layer, int slot, const Row& row);
    void attend(Team::Member& member, int layer, int slot, const Row& row, int kv_head);
    void swiglu(Team::Member& member, const Segment& segment, int slot, const Matrix& matrix);
    KvView view(const Pages& data, const Pages& scales, int layer, int kv_head) const;
    void score(Team::Member& member, int count, bool draft, float* out);
    bool prepare_head(const float* const* residuals, const int* depths, int count);
    void score_range(const Table& table, int begin, int end, int count, float* out, ptrdiff_t stride);
    Best best_of(const float* logits, int begin, int end, const Draw& draw, bool draft) const;

    float* scratch(const Team::Member& member) const {
        return member_scratch_.as<float>() + member.index() * scratch_stride_;
    }

    Shape shape_;
    const Kernels& kernels_;
    Team team_;

    std::vector<Layer> layers_;
    Pages tiles_;
    std::vector<float> final_norm_, cos_, sin_;
    Table embedding_{}, head_{};
    std::vector<Pages> rounded_;  // rows and scales of tables
    std::vector<int> draft_ids_;
    Table draft_head_{};    // the head itself, or the draft ids' rows of it
    int draft_prefix_ = 0;  // draft ids 0..prefix−1 are rows 0..prefix−1 of that
    Pages gathered_;
    std::vector<float> gathered_scales_;

    KvDtype kv_dtype_ = KvDtype::float16;
    int num_blocks_ = 0, block_size_ = 1, num_states_ = 0;
    Pages keys_, values_, key_scales_, value_scales_, states_;

    const Lookups* const lookups_;  // null where no products go by look-up
    int digits_ = 1;  // of a transformed integer: more than one where it is beyond 8 bits

    // Widths of the buffers' rows, in elements.
    int hidden_stride_, head_stride_, q_stride_, acc_stride_, query_stride_, attended_stride_;
    int score_stride_;
    ptrdiff_t scratch_stride_;
    int reserved_ = 0;
    Pages hidden_, quantised_, interleaved_, acc_, queries_, attended_, member_scratch_;
    Pages floats_, wide_;  // what dense matrices multiply
    Pages digit_tables_;
    std::vector<Pages> lookup_scratch_;  // per member
    std::vector<float> steps_;    // per row: what 1 stands for, of its integers
    std::vector<int32_t> sums_;   // per line, where codes are trits + 1
    int fewest_for_sums_ = 0;  // rows from which on `by_sums` is faster than `by_digits`
    std::vector<Segment> segments_;
    int num_segments_ = 0;
    std::atomic<bool> finite_{true};

    // The sweep in progress.
    const std::vector<Row>* rows_ = nullptr;
    const std::vector<std::vector<int32_t>>* tables_ = nullptr;

    // The head call in progress.
    int head_reserved_ = 0;
    Pages head_x_, head_q_, head_logits_;
    std::vector<float> head_steps_;
    std::vector<Best> best_;
};

}  // namespace bitskip
