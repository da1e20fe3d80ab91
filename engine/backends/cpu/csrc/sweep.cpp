// Rows through layers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.hpp"

namespace bitskip {
namespace {

constexpr ptrdiff_t GEMM_CHUNK_BYTES = 32768;  // codes that a member claims at a time
constexpr float HALF_LIMIT = 65520.0f;         // the least float that float16 rounds to infinity
// Longer queries could make sums of both infinities, and a NaN among scores loses its key unseen.
constexpr float QUERY_LIMIT = 1e30f;

int chunk_tiles(const Matrix& matrix) {
    // The kernels take two tiles at a time.
    return int(std::max<ptrdiff_t>(2, GEMM_CHUNK_BYTES / matrix.tile_bytes()));
}

// Cuts a matrix's parts into runs of `tiles` and calls f(part, begin, end, repeat) for each, and
// for each of 0..repeats − 1.
template <class F>
void each_piece(Team::Member& member, const Matrix& matrix, int tiles, int repeats, F&& f) {
    int total = 0;
    for (const Part& part : matrix.parts) total += pieces(part.tiles(), tiles);
    member.each(total * repeats, [&](int i) {
        int piece = i % total;
        const Part* part = matrix.parts.data();
        for (; piece >= pieces(part->tiles(), tiles); part++) piece -= pieces(part->tiles(), tiles);
        f(*part, piece * tiles, std::min((piece + 1) * tiles, part->tiles()), i / total);
    });
}

}  // namespace

bool Model::sweep(const std::vector<Row>& rows, const std::vector<std::vector<int32_t>>& tables,
                  float* hidden) {
    const int count = int(rows.size());
    reserve(count);
    plan(rows);
    rows_ = &rows;
    tables_ = &tables;
    finite_.store(true, std::memory_order_relaxed);
    float* const inside = hidden_.as<float>();
    const size_t bytes = shape_.hidden * sizeof(float);
    for (int i = 0; i < count; i++) {
        float* x = inside + ptrdiff_t(i) * hidden_stride_;
        if (rows[i].token >= 0) {
            kernels_.widen(embedding_.row(rows[i].token), embedding_.dtype, hidden_stride_, x);
        } else {
            std::memcpy(x, states_.as<float>() + ptrdiff_t(rows[i].source) * hidden_stride_, bytes);
        }
    }
    team_.run([&](Team::Member& member) {
        for (int i = 0; i < num_segments_; i++) run_layers(member, segments_[i]);
    });
    for (int i = 0; i < count; i++) {
        const float* x = inside + ptrdiff_t(i) * hidden_stride_;
        std::memcpy(hidden + ptrdiff_t(i) * shape_.hidden, x, bytes);
        if (rows[i].target >= 0)
            std::memcpy(states_.as<float>() + ptrdiff_t(rows[i].target) * hidden_stride_, x, bytes);
    }
    return finite_.load(std::memory_order_relaxed);
}

// Cuts the layers where a row begins or ends.
void Model::plan(const std::vector<Row>& rows) {
    num_segments_ = 0;
    for (int first = 0; first < shape_.layers;) {
        int next = shape_.layers;
        for (const Row& row : rows) {
            if (row.first > first) next = std::min(next, row.first);
            if (row.last > first) next = std::min(next, row.last);
        }
        if (num_segments_ == int(segments_.size())) {
            segments_.emplace_back();
            segments_.back().active.reserve(reserved_);
        }
        Segment& segment = segments_[num_segments_];
        segment.first = first;
        segment.last = next;
        segment.active.clear();
        for (int i = 0; i < int(rows.size()); i++)
            if (rows[i].first <= first && first < rows[i].last) segment.active.push_back(i);
        segment.lines = segment.count() * digits_;
        segment.by_sums = lookups_ && segment.lines >= fewest_for_sums_;
        if (!segment.active.empty()) num_segments_++;
        first = next;
    }
}

// Rows of a segment have slots 0, 1, …: their places in all buffers but the residuals'.
void Model::run_layers(Team::Member& member, const Segment& segment) {
    const int count = segment.count();
    const auto row_of = [&](int slot) -> const Row& { return (*rows_)[segment.active[slot]]; };
    member.each(count, [&](int slot) {
        normalise(segment, slot, layers_[segment.first].attention_norm);
    });
    for (int index = segment.first; index < segment.last; index++) {
        const Layer& layer = layers_[index];
        gemm(member, segment, layer.qkv);
        // All rows write before any attends.
        member.each(count, [&](int slot) { rotate_and_store(member, index, slot, row_of(slot)); });
        member.each(count * shape_.kv_heads, [&](int i) {
            const int slot = i / shape_.kv_heads;
            attend(member, index, slot, row_of(slot), i % shape_.kv_heads);
        });
        member.each(count, [&](int slot) {
            take_in(segment, slot, attended_.as<float>() + ptrdiff_t(slot) * attended_stride_,
                     shape_.q_size());
        });
        gemm(member, segment, layer.output);
        member.each(count, [&](int slot) {
            add_residual(member, slot, segment.active[slot], layer.output);
            normalise(segment, slot, layer.ffn_norm);
        });
        gemm(member, segment, layer.gate_up);
        member.each(count, [&](int slot) { swiglu(member, segment, slot, layer.gate_up); });
        gemm(member, segment, layer.down);
        member.each(count, [&](int slot) {
            add_residual(member, slot, segment.active[slot], layer.down);
            if (index + 1 < segment.last)
                normalise(segment, slot, layers_[index + 1].attention_norm);
        });
    }
    member.settle();
}

// Sums for all rows. Of ternary linears the line count chooses the kernel, which integers do not
// notice.
void Model::gemm(Team::Member& member, const Segment& segment, const Matrix& matrix) {
    if (shape_.linears != Linears::ternary) return gemm_dense(member, segment, matrix);
    if (segment.by_sums) return gemm_by_sums(member, segment, matrix);
    if (lookups_) return gemm_by_digits(member, segment, matrix);
    const int blocks = matrix.blocks(), rows = segment.lines;
    each_piece(member, matrix, chunk_tiles(matrix), 1,
               [&](const Part& part, int begin, int end, int) {
        constexpr int QUADS = TILE / QUAD;
        for (int m = 0; m < rows; m += MAX_GEMM_ROWS)
            kernels_.ternary(part.codes, blocks,
                             quantised_.as<int8_t>() + ptrdiff_t(m) * q_stride_, q_stride_,
                             std::min(rows - m, MAX_GEMM_ROWS), begin * QUADS,
                             std::min(end * QUADS, part.quads()),
                             acc_.as<int32_t>() + ptrdiff_t(m) * acc_stride_ + part.offset,
                             acc_stride_);
    });
}

void Model::gemm_by_digits(Team::Member& member, const Segment& segment, const Matrix& matrix) {
    each_piece(member, matrix, chunk_tiles(matrix), 1,
               [&](const Part& part, int begin, int end, int) {
        for (int m = 0; m < segment.lines; m++)
            lookups_->by_digits(part.codes, matrix.blocks(),
                                        digit_tables_.as<int8_t>() + ptrdiff_t(m) * q_stride_ * 16,
                                        begin, end,
                                        acc_.as<int32_t>() + ptrdiff_t(m) * acc_stride_ +
                                            part.offset);
    });
}

void Model::gemm_by_sums(Team::Member& member, const Segment& segment, const Matrix& matrix) {
    // A call's tables cost as much as 120 of its outputs: few calls with many tiles.
    const int share = pieces(matrix.outputs, team_.size() * TILE);
    const int tiles = segment.groups() >= team_.size() ? LOOKUP_TILES : std::clamp(share, 16, LOOKUP_TILES);
    char* scratch = lookup_scratch_[member.index()].as<char>();
    each_piece(member, matrix, tiles, segment.groups(),
               [&](const Part& part, int begin, int end, int group) {
        const ptrdiff_t first = ptrdiff_t(group) * LOOKUP_ROWS;
        lookups_->by_sums(part.codes, matrix.blocks(),
                                  interleaved_.as<int16_t>() + first * q_stride_,
                                  segment.width(group),
                                  std::min(segment.lines - int(first), LOOKUP_ROWS), begin, end,
                                  scratch,
                                  acc_.as<int32_t>() + first * acc_stride_ + part.offset,
                                  acc_stride_);
    });
}

// A tile's weights come from memory once, however many rows there are.
void Model::gemm_dense(Team::Member& member, const Segment& segment, const Matrix& matrix) {
    const Inputs inputs{floats_.as<float>(), wide_.as<int16_t>(), steps_.data(), q_stride_};
    each_piece(member, matrix, 1, 1, [&](const Part& part, int begin, int end, int) {
        const int first = begin * TILE;
        multiply(part.table, first, std::min(end * TILE, part.outputs), inputs, segment.count(),
                 acc_.as<float>() + part.offset + first, acc_stride_);
    });
}

void Model::multiply(const Table& table, int begin, int end, const Inputs& inputs, int count,
                     float* out, ptrdiff_t out_stride) const {
    for (int m = 0; m < count; m += MAX_GEMM_ROWS, out += MAX_GEMM_ROWS * out_stride) {
        const int rows = std::min(count - m, MAX_GEMM_ROWS);
        const ptrdiff_t at = m * inputs.stride;
        if (table.dtype == Dtype::int8) {
            kernels_.dense_int8(reinterpret_cast<const int8_t*>(table.data), table.scales,
                                table.stride, begin, end, inputs.wide + at, inputs.stride,
                                inputs.steps + m, rows, out, out_stride);
        } else {
            kernels_.dense_float(table.data, table.dtype, table.stride, begin, end,
                                 inputs.floats + at, inputs.stride, rows, out, out_stride);
        }
    }
}

void Model::take_in(const Segment& segment, int slot, float* x, int n) {
    const int padded = round_up(n, LANES);
    const ptrdiff_t at = ptrdiff_t(slot) * q_stride_;
    switch (shape_.linears) {
        case Linears::ternary:
            if (shape_.hadamard == Hadamard::before) kernels_.hadamard(x, n, orthonormal(n));
            return quantise(segment, slot, x, n);
        case Linears::floats:
            expect_finite(kernels_.peak(x, n));
            std::copy_n(x, padded, floats_.as<float>() + at);
            return;
        case Linears::int8:
            const int limit = wide_limit(n);
            const float peak = kernels_.quantise_wide(x, n, padded, limit, wide_.as<int16_t>() + at);
            steps_[slot] = peak / float(limit);
            expect_finite(peak);
    }
}

void Model::quantise(const Segment& segment, int slot, float* x, int n) {
    const int padded = round_up(n, BLOCK), limit = shape_.activation_max;
    int line = slot * digits_;
    int8_t* q = quantised_.as<int8_t>() + line * ptrdiff_t(q_stride_);
    float peak;
    if (shape_.hadamard == Hadamard::after) {
        peak = kernels_.quantise_hadamard(x, n, padded, limit, digits_, q, q_stride_, &sums_[line]);
    } else {
        const Quantised result = kernels_.quantise(x, n, padded, limit, q);
        peak = result.peak;
        sums_[line] = result.sum;
    }
    steps_[slot] = peak / float(limit);
    expect_finite(peak);
    if (!lookups_) return;
    for (const int end = line + digits_; line < end; line++, q += q_stride_) {
        sums_[line] = 0;  // codes are trits there
        if (segment.by_sums) {
            const int group = line / LOOKUP_ROWS, width = segment.width(group);
            int16_t* column = interleaved_.as<int16_t>() +
                              ptrdiff_t(group) * LOOKUP_ROWS * q_stride_ + line % LOOKUP_ROWS;
            for (int i = 0; i < padded; i++) column[ptrdiff_t(i) * width] = q[i];
        } else {
            lookups_->digit_tables(
                q, padded / BLOCK, digit_tables_.as<int8_t>() + ptrdiff_t(line) * q_stride_ * 16);
        }
    }
}

void Model::take_out(int slot, const Part& part, float* out) const {
    if (shape_.linears != Linears::ternary) {
        std::copy_n(sums_at<float>(slot) + part.offset, part.outputs, out);
        return;
    }
    const int32_t* acc = sums_at<int32_t>(slot) + part.offset;
    const int32_t* sums = &sums_[slot * digits_];
    const float c = steps_[slot] * part.scale * part.norm;
    if (digits_ == 1) {
        const int32_t sum = *sums;
        for (int i = 0; i < part.outputs; i++) out[i] = float(acc[i] - sum) * c;
    } else {
        for (int i = 0; i < part.outputs; i++) {
            int64_t total = 0;
            for (int d = digits_ - 1; d >= 0; d--)
                total = total * DIGIT_BASE + (acc[d * ptrdiff_t(acc_stride_) + i] - sums[d]);
            out[i] = float(total) * c;
        }
    }
    if (shape_.hadamard != Hadamard::none)
        kernels_.hadamard(out, part.outputs, orthonormal(part.outputs));
}

void Model::expect_finite(float value) {
    if (!std::isfinite(value)) finite_.store(false, std::memory_order_relaxed);
}

void Model::normalise(const Segment& segment, int slot, const std::vector<float>& gain) {
    // Its place among the sums is free between two matrix products.
    float* normed = sums_at<float>(slot);
    expect_finite(kernels_.rms_norm(hidden_.as<float>() +
                                        ptrdiff_t(segment.active[slot]) * hidden_stride_,
                                    gain.data(), shape_.hidden, shape_.eps, normed));
    take_in(segment, slot, normed, shape_.hidden);
}

void Model::add_residual(Team::Member& member, int slot, int row, const Matrix& matrix) {
    float* y = scratch(member);
    take_out(slot, matrix.parts.front(), y);
    float* x = hidden_.as<float>() + ptrdiff_t(row) * hidden_stride_;
    for (int i = 0; i < shape_.hidden; i++) x[i] = x[i] + y[i];
}

KvView Model::view(const Pages& data, const Pages& scales, int layer, int kv_head) const {
    const ptrdiff_t heads = ptrdiff_t(shape_.layers) * shape_.kv_heads;
    const ptrdiff_t before = ptrdiff_t(layer) * shape_.kv_heads + kv_head;
    const ptrdiff_t bytes = ptrdiff_t(block_size_) * head_stride_ * size_of(kv_dtype_);
    KvView view{data.as<uint8_t>() + before * bytes, nullptr, heads * bytes, heads * block_size_};
    if (kv_dtype_ == KvDtype::int8) view.scales = scales.as<float>() + before * block_size_;
    return view;
}

void Model::rotate_and_store(Team::Member& member, int layer, int slot, const Row& row) {
    const int size = shape_.head_dim, half = size / 2;
    const float* cos = cos_.data() + ptrdiff_t(row.position) * half;
    const float* sin = sin_.data() + ptrdiff_t(row.position) * half;
    const Matrix& qkv = layers_[layer].qkv;
    float* x = scratch(member);
    const auto rotated = [&](const float* in, float* out, float factor) {
        for (int i = 0; i < half; i++) {
            const float low = in[i] * cos[i] - in[i + half] * sin[i];
            const float high = in[i + half] * cos[i] + in[i] * sin[i];
            out[i] = low * factor;
            out[i + half] = high * factor;
        }
    };

    take_out(slot, qkv.parts[0], x);
    float* queries = queries_.as<float>() + ptrdiff_t(slot) * query_stride_;
    const float scale = 1.0f / std::sqrt(float(size));
    for (int h = 0; h < shape_.heads; h++)
        rotated(x + h * size, queries + ptrdiff_t(h) * head_stride_, scale);
    const float longest = kernels_.peak(queries, query_stride_);
    expect_finite(longest < QUERY_LIMIT ? longest : INFINITY);

    // One head at a time through a padded buffer, behind the projections.
    float* padded = x + round_up(shape_.kv_size(), LANES);
    std::fill(padded, padded + head_stride_, 0.0f);
    const int block = (*tables_)[row.table][row.position / block_size_];
    const int offset = row.position % block_size_;
    const auto write = [&](const Pages& data, const Pages& scales, int h) {
        const KvView at = view(data, scales, layer, h);
        uint8_t* cell = const_cast<uint8_t*>(at.data) + block * at.block_stride +
                        ptrdiff_t(offset) * head_stride_ * size_of(kv_dtype_);
        if (kv_dtype_ == KvDtype::float32) {
            std::memcpy(cell, padded, head_stride_ * sizeof(float));
            const float peak = kernels_.peak(padded, head_stride_);
            expect_finite(peak < QUERY_LIMIT ? peak : INFINITY);
        } else if (kv_dtype_ == KvDtype::float16) {
            const float peak =
                kernels_.store_half(padded, head_stride_, reinterpret_cast<uint16_t*>(cell));
            expect_finite(peak < HALF_LIMIT ? peak : INFINITY);
        } else {
            float* scale_cell = const_cast<float*>(at.scales) + block * at.scale_stride + offset;
            *scale_cell =
                kernels_.store_int8(padded, head_stride_, reinterpret_cast<int8_t*>(cell));
            expect_finite(*scale_cell);
        }
    };
    take_out(slot, qkv.parts[1], x);
    for (int h = 0; h < shape_.kv_heads; h++) {
        rotated(x + h * size, padded, 1.0f);
        write(keys_, key_scales_, h);
    }
    take_out(slot, qkv.parts[2], x);
    for (int h = 0; h < shape_.kv_heads; h++) {
        std::copy_n(x + h * size, size, padded);
        write(values_, value_scales_, h);
    }
}

void Model::attend(Team::Member& member, int layer, int slot, const Row& row, int kv_head) {
    const int group = shape_.heads / shape_.kv_heads;
    float* scores = scratch(member);
    float* out = scores + ptrdiff_t(group) * score_stride_;
    Attention task{};
    task.queries = queries_.as<float>() + ptrdiff_t(slot) * query_stride_ +
                   ptrdiff_t(kv_head) * group * head_stride_;
    task.group = group;
    task.head_stride = head_stride_;
    task.blocks = (*tables_)[row.table].data();
    task.block_size = block_size_;
    task.num_keys = row.position + 1;
    task.dtype = kv_dtype_;
    task.keys = view(keys_, key_scales_, layer, kv_head);
    task.values = view(values_, value_scales_, layer, kv_head);
    task.scores = scores;
    task.score_stride = score_stride_;
    task.out = out;
    kernels_.attend(task);
    float* attended = attended_.as<float>() + ptrdiff_t(slot) * attended_stride_ +
                      ptrdiff_t(kv_head) * group * shape_.head_dim;
    for (int g = 0; g < group; g++)
        std::copy_n(out + g * head_stride_, shape_.head_dim, attended + g * shape_.head_dim);
}

void Model::swiglu(Team::Member& member, const Segment& segment, int slot,
                   const Matrix& matrix) {
    const int width = round_up(shape_.ffn, LANES);
    float *gate = scratch(member), *up = gate + width, *out = up + width;
    take_out(slot, matrix.parts[0], gate);
    take_out(slot, matrix.parts[1], up);
    for (int i = shape_.ffn; i < width; i++) gate[i] = up[i] = 0.0f;
    kernels_.swiglu(gate, up, width, out);
    take_in(segment, slot, out, shape_.ffn);
}

}  // namespace bitskip
