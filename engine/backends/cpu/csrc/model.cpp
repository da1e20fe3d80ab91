#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "timing.hpp"

namespace bitskip {
namespace {

constexpr int ALIGNED_FLOATS = 16;  // 64 bytes
constexpr int FEW_SCATTERED = 256;  // draft ids whose rows of the head are read where they lie

int widest_output(const Shape& shape) {
    const int qkv = round_up(shape.q_size(), TILE) + 2 * round_up(shape.kv_size(), TILE);
    return std::max({qkv, round_up(shape.hidden, TILE), 2 * round_up(shape.ffn, TILE)});
}

int digits_of(const Shape& shape) {
    if (shape.hadamard != Hadamard::after) return 1;
    const int widest = std::max({shape.hidden, shape.q_size(), shape.ffn});
    int digits = 1;
    for (int64_t reach = 127; reach < int64_t(shape.activation_max) * widest; digits++)
        reach = reach * DIGIT_BASE + 127;
    return digits;
}

// Half to even; `x` must be finite.
void round_to_bfloat(const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], sizeof bits);
        out[i] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

template <class T>
void grow(Pages& pages, ptrdiff_t count) {
    if (pages.bytes() < count * sizeof(T)) pages = Pages(count * sizeof(T), Pages::Size::small);
}

}  // namespace

Model::Model(Shape shape, const Kernels& kernels, int threads)
    : shape_(shape),
      kernels_(kernels),
      team_(threads),
      layers_(shape.layers),
      lookups_(shape.linears == Linears::ternary ? kernels.lookups : nullptr),
      digits_(digits_of(shape)) {
    hidden_stride_ = round_up(shape.hidden, ALIGNED_FLOATS);
    head_stride_ = round_up(shape.head_dim, LANES);
    q_stride_ = round_up(std::max({shape.hidden, shape.q_size(), shape.ffn}), BLOCK);
    acc_stride_ = round_up(widest_output(shape), ALIGNED_FLOATS);
    query_stride_ = shape.heads * head_stride_;
    attended_stride_ = round_up(shape.q_size(), ALIGNED_FLOATS);
    score_stride_ = round_up(shape.positions, LANES);
    const int group = shape.heads / shape.kv_heads;
    scratch_stride_ = std::max<ptrdiff_t>(
        {3 * ptrdiff_t(round_up(shape.ffn, ALIGNED_FLOATS)), ptrdiff_t(acc_stride_),
         ptrdiff_t(round_up(shape.kv_size(), LANES) + head_stride_),
         group * ptrdiff_t(score_stride_ + head_stride_)});
    member_scratch_ = Pages(threads * scratch_stride_ * sizeof(float), Pages::Size::small);
    segments_.reserve(2 * shape.layers);
}

void Model::set_rotary(const float* cos, const float* sin) {
    const size_t count = size_t(shape_.positions) * (shape_.head_dim / 2);
    cos_.assign(cos, cos + count);
    sin_.assign(sin, sin + count);
}

void Model::set_layer(int index, Layer layer) {
    if (shape_.hadamard == Hadamard::after)
        for (Matrix* matrix : layer.matrices())
            for (Part& part : matrix->parts) part.norm = orthonormal(matrix->inputs);
    layers_[index] = std::move(layer);
}

Table Model::rounded(const Table& table, int rows, Dtype dtype) {
    const bool scaled = dtype == Dtype::int8;
    Pages data(size_t(rows) * table.stride * size_of(dtype), Pages::Size::huge);
    Pages scales(scaled ? rows * sizeof(float) : 0, Pages::Size::small);
    constexpr int CHUNK = 256;
    team_.run([&](Team::Member& member) {
        member.each(pieces(rows, CHUNK), [&](int chunk) {
            for (int i = chunk * CHUNK; i < std::min(rows, (chunk + 1) * CHUNK); i++) {
                const ptrdiff_t at = ptrdiff_t(i) * table.stride;
                if (scaled) {
                    scales.as<float>()[i] = kernels_.pack_row(table.row(i), table.dtype, table.stride,
                                                              data.as<int8_t>() + at);
                } else {
                    float* x = scratch(member);
                    kernels_.widen(table.row(i), table.dtype, table.stride, x);
                    round_to_bfloat(x, table.stride, data.as<uint16_t>() + at);
                }
            }
        });
    });
    const Table out{data.as<uint8_t>(), dtype, table.stride, scales.as<float>()};
    rounded_.push_back(std::move(data));
    rounded_.push_back(std::move(scales));
    return out;
}

void Model::set_draft_ids(std::vector<int> ids) {
    draft_ids_ = std::move(ids);
    draft_prefix_ = 0;
    while (draft_prefix_ < draft_count() && draft_ids_[draft_prefix_] == draft_prefix_)
        draft_prefix_++;
    draft_head_ = head_;
    if (draft_count() - draft_prefix_ <= FEW_SCATTERED) return;
    // Rows here and there are read at a fifth of the speed of rows in order: copied, they are.
    const size_t row_bytes = size_t(head_.stride) * size_of(head_.dtype);
    gathered_ = Pages(draft_count() * row_bytes, Pages::Size::huge);
    gathered_scales_.resize(head_.scales ? draft_count() : 0);
    for (int slot = 0; slot < draft_count(); slot++) {
        std::memcpy(gathered_.as<uint8_t>() + slot * row_bytes, head_.row(draft_ids_[slot]), row_bytes);
        if (head_.scales) gathered_scales_[slot] = head_.scales[draft_ids_[slot]];
    }
    draft_head_ = {gathered_.as<uint8_t>(), head_.dtype, head_.stride, gathered_scales_.data()};
    draft_prefix_ = draft_count();
}

void Model::allocate(int blocks, int block_size, int states, KvDtype dtype) {
    // Should there be too little memory, nobody may think that there are blocks.
    num_blocks_ = num_states_ = 0;
    for (Pages* pages : {&keys_, &values_, &key_scales_, &value_scales_, &states_}) *pages = Pages();
    // In floating point, since the product may not fit 64 bits.
    if (double(blocks) * shape_.layers * shape_.kv_heads * block_size * head_stride_ > 0x1p60)
        throw std::bad_alloc();
    const size_t positions = size_t(blocks) * shape_.layers * shape_.kv_heads * block_size;
    const size_t bytes = positions * head_stride_ * size_of(dtype);
    const size_t scales = dtype == KvDtype::int8 ? positions * sizeof(float) : 0;
    // What is never used never becomes resident; large pages would make it so.
    keys_ = Pages(bytes, Pages::Size::small);
    values_ = Pages(bytes, Pages::Size::small);
    key_scales_ = Pages(scales, Pages::Size::small);
    value_scales_ = Pages(scales, Pages::Size::small);
    states_ = Pages(size_t(states) * hidden_stride_ * sizeof(float), Pages::Size::small);
    num_blocks_ = blocks;
    block_size_ = block_size;
    num_states_ = states;
    kv_dtype_ = dtype;
}

std::vector<Model::Memory> Model::kv_memory(int layer, int block) const {
    const size_t cells = size_t(shape_.kv_heads) * block_size_;
    const size_t at = size_t(block) * shape_.layers + layer;
    std::vector<Memory> parts;
    const auto add = [&](const Pages& pages, size_t bytes) {
        if (pages.bytes()) parts.push_back({pages.as<char>() + at * bytes, bytes});
    };
    const size_t bytes = cells * head_stride_ * size_of(kv_dtype_);
    add(keys_, bytes);
    add(values_, bytes);
    add(key_scales_, cells * sizeof(float));
    add(value_scales_, cells * sizeof(float));
    return parts;
}

void Model::reserve(int rows) {
    if (rows <= reserved_) return;
    const int wanted = round_up(rows, LOOKUP_ROWS), lines = wanted * digits_;
    grow<float>(hidden_, ptrdiff_t(wanted) * hidden_stride_);
    if (shape_.linears == Linears::ternary)
        grow<int8_t>(quantised_, ptrdiff_t(lines) * q_stride_);
    else if (shape_.linears == Linears::int8)
        grow<int16_t>(wide_, ptrdiff_t(wanted) * q_stride_);
    else
        grow<float>(floats_, ptrdiff_t(wanted) * q_stride_);
    grow<int32_t>(acc_, ptrdiff_t(lines) * acc_stride_);
    grow<float>(queries_, ptrdiff_t(wanted) * query_stride_);
    grow<float>(attended_, ptrdiff_t(wanted) * attended_stride_);
    steps_.resize(wanted);
    sums_.resize(lines);
    if (lookups_) {
        grow<int16_t>(interleaved_, ptrdiff_t(lines) * q_stride_);
        // Few lines only; 64 bytes for every 4 inputs.
        grow<int8_t>(digit_tables_, ptrdiff_t(LOOKUP_ROWS) * q_stride_ * 16);
    }
    for (Segment& segment : segments_) segment.active.reserve(wanted);
    reserved_ = wanted;
}

bool Model::finish() {
    if (!lookups_) return false;
    copy_tiles();
    tune();
    return true;
}

// [quad][block][4 outputs][byte position] to [tile][block][byte position][32 outputs].
void Model::copy_tiles() {
    constexpr int BYTES = BLOCK / 4, QUADS = TILE / QUAD;
    struct Tile {
        const uint8_t* from;
        uint8_t* to;
        int quads, blocks;
    };
    std::vector<Tile> tiles;
    ptrdiff_t total = 0;
    for (Layer& layer : layers_)
        for (Matrix* matrix : layer.matrices())
            for (Part& part : matrix->parts) total += part.tiles() * matrix->tile_bytes();
    tiles_ = Pages(total, Pages::Size::huge);
    uint8_t* to = tiles_.as<uint8_t>();
    for (Layer& layer : layers_)
        for (Matrix* matrix : layer.matrices()) {
            const int blocks = matrix->blocks();
            for (Part& part : matrix->parts) {
                const uint8_t* from = part.codes;
                part.codes = to;
                for (int t = 0; t < part.tiles(); t++, to += matrix->tile_bytes())
                    tiles.push_back({from + ptrdiff_t(t) * QUADS * blocks * QUAD * BYTES, to,
                                     std::min(QUADS, part.quads() - t * QUADS), blocks});
            }
        }
    team_.run([&](Team::Member& member) {
        member.each(int(tiles.size()), [&](int i) {
            const Tile& tile = tiles[i];
            lookups_->copy_tile(tile.from, tile.blocks, tile.quads, tile.to);
        });
    });
}

// From how many rows on are sums of many rows faster on this machine? Takes a few ms.
void Model::tune() {
    const Lookups& lookups = *lookups_;
    for (int i = 0; i < team_.size(); i++)
        lookup_scratch_.emplace_back(LOOKUP_SCRATCH, Pages::Size::small);
    fewest_for_sums_ = 1;
    reserve(1);
    const Matrix& matrix = layers_.front().gate_up;
    const Part& part = matrix.parts.front();
    const int tiles = std::min(part.tiles(), LOOKUP_TILES);
    const double one_row = least_seconds([&] {
        lookups.by_digits(part.codes, matrix.blocks(), digit_tables_.as<int8_t>(), 0, tiles,
                          acc_.as<int32_t>());
    });
    const double eight_rows = least_seconds([&] {
        lookups.by_sums(part.codes, matrix.blocks(), interleaved_.as<int16_t>(), LOOKUP_ROWS / 2,
                        LOOKUP_ROWS / 2, 0, tiles, lookup_scratch_[0].as<char>(),
                        acc_.as<int32_t>(), acc_stride_);
    });
    fewest_for_sums_ = std::clamp(int(std::ceil(eight_rows / one_row)), 2, LOOKUP_ROWS / 2);
}

}  // namespace bitskip
