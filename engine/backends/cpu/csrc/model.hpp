// A model on this machine: weights, K/V memory, exit states, and the two operations on them.
//
// A sweep moves rows through layers; the head turns residuals into logits or tokens. Both are
// single calls that the whole team runs together, phase by phase.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pages.hpp"
#include "team.hpp"

namespace bitskip {

struct Shape {
    int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, positions;
    float eps;
    bool exit_norm;

    int q_size() const { return heads * head_dim; }
    int kv_size() const { return kv_heads * head_dim; }
};

// One ternary linear: scale × (codes − 1).
struct Part {
    const uint8_t* codes;  // as in the file, or in tiles
    int outputs;
    float scale;
    int offset;  // of its first output among those of its matrix

    int quads() const { return pieces(outputs, QUAD); }
    int tiles() const { return pieces(outputs, TILE); }
};

// Linears that share an input.
struct Matrix {
    std::vector<Part> parts;
    int inputs = 0;
    int outputs = 0;  // each part's rounded up to a tile

    int blocks() const { return pieces(inputs, BLOCK); }
    ptrdiff_t tile_bytes() const { return ptrdiff_t(blocks()) * BLOCK / 4 * TILE; }
};

struct Layer {
    Matrix qkv, output, gate_up, down;
    std::vector<float> attention_norm, ffn_norm;  // padded
};

// A matrix of floats, one row per token id; rows are padded to LANES.
struct Table {
    const uint8_t* data;
    Dtype dtype;

    const void* row(ptrdiff_t i, int stride) const {
        return data + i * stride * (dtype == Dtype::float32 ? 4 : 2);
    }
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
    void set_layer(int index, Layer layer) { layers_[index] = std::move(layer); }
    void set_embedding(Table table) { embedding_ = table; }
    void set_final_norm(std::vector<float> gain) { final_norm_ = std::move(gain); }
    void set_rotary(const float* cos, const float* sin);  // each positions × head_dim / 2
    void set_head(Table table) { head_ = table; }
    // Rounds the head to 8 bits with a scale per row; the table is not read again.
    void pack_head(Table table);
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
        bool by_sums;  // whether there are enough of them for `Lookups::by_sums`

        int count() const { return int(active.size()); }
        // Rows go in groups of LOOKUP_ROWS; the last may be half as wide.
        int groups() const { return pieces(count(), LOOKUP_ROWS); }
        int width(int group) const {
            return count() - group * LOOKUP_ROWS > LOOKUP_ROWS / 2 ? LOOKUP_ROWS : LOOKUP_ROWS / 2;
        }
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
    void normalise(const Segment& segment, int slot, const std::vector<float>& gain);
    void quantise(const Segment& segment, int slot, const float* x, int n);
    // Makes the sweep fail unless `value` is finite.
    void expect_finite(float value);
    // (peak / 127) · scale: what an integer sum of this row and linear stands for.
    float factor(int slot, const Part& part) const { return peaks_[slot] / 127.0f * part.scale; }
    // One row of the last gemm as floats.
    void scaled(int slot, const Part& part, float* out) const;
    void add_residual(int slot, int row, const Matrix& matrix);
    void rotate_and_store(Team::Member& member, int layer, int slot, const Row& row);
    void attend(Team::Member& member, int layer, int slot, const Row& row, int kv_head);
    void swiglu(Team::Member& member, const Segment& segment, int slot, const Matrix& matrix);
    KvView view(const Pages& data, const Pages& scales, int layer, int kv_head) const;
    void score(Team::Member& member, int count, bool draft, float* out);
    bool prepare_head(const float* const* residuals, const int* depths, int count);
    void score_range(int begin, int end, int count, float* out, ptrdiff_t stride);
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
    Pages packed_head_;
    std::vector<float> head_scales_;  // of the packed head; empty otherwise
    std::vector<int> draft_ids_;
    int draft_prefix_ = 0;  // draft ids 0..prefix−1 are the ids themselves

    KvDtype kv_dtype_ = KvDtype::float16;
    int num_blocks_ = 0, block_size_ = 1, num_states_ = 0;
    Pages keys_, values_, key_scales_, value_scales_, states_;

    // Widths of the buffers' rows, in elements.
    int hidden_stride_, head_stride_, q_stride_, acc_stride_, query_stride_, attended_stride_;
    int score_stride_, wide_limit_;
    ptrdiff_t scratch_stride_;
    int reserved_ = 0;
    Pages hidden_, quantised_, interleaved_, acc_, queries_, attended_, member_scratch_;
    Pages digit_tables_;
    std::vector<Pages> lookup_scratch_;  // per member
    std::vector<float> peaks_;
    std::vector<int32_t> sums_;
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
    std::vector<float> head_scale_;
    std::vector<Best> best_;
};

}  // namespace bitskip
