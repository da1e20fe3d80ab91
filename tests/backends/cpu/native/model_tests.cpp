// Random models of awkward shapes: all instruction sets and thread counts compute the same bits,
// in sweeps of many rows as in sweeps of one. Made for sanitizers: every buffer at its tightest.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "model.hpp"

namespace bitskip {
namespace {

using Generator = std::mt19937_64;

int between(Generator& generator, int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(generator);
}

std::vector<float> floats(Generator& generator, size_t count, float low, float high) {
    std::uniform_real_distribution<float> any(low, high);
    std::vector<float> out(count);
    for (float& x : out) x = any(generator);
    return out;
}

// Weights of a random shape, from which models are made that must agree.
class Weights {
public:
    explicit Weights(Generator& generator) {
        const auto any = [&](int low, int high) { return between(generator, low, high); };
        constexpr int HEAD_DIMS[] = {2, 6, 16, 20, 32, 34, 64, 128};
        shape.layers = any(1, 3);
        shape.hadamard = Hadamard(std::max(0, any(-1, 2)));
        if (shape.hadamard == Hadamard::none) {
            shape.linears = Linears(any(0, 2));
            shape.kv_heads = any(1, 3);
            shape.heads = shape.kv_heads * any(1, 5);
            shape.head_dim = HEAD_DIMS[any(0, 7)];
            shape.hidden = any(1, 300);
            shape.ffn = any(1, 560);
        } else {  // powers of two
            shape.kv_heads = 1 << any(0, 1);
            shape.heads = shape.kv_heads << any(0, 2);
            shape.head_dim = 1 << any(1, 6);
            shape.hidden = 1 << any(0, 8);
            shape.ffn = 1 << any(0, 9);
        }
        shape.activation_max = any(0, 1) ? 127 : 7;
        dense_dtype_ = shape.linears == Linears::int8 ? Dtype::int8
                       : any(0, 1)                    ? Dtype::bfloat16
                                                      : Dtype::float32;
        shape.vocab = any(1, 200);
        shape.positions = any(1, 70);
        shape.eps = 1e-5f;
        shape.exit_norm = any(0, 1);
        stride_ = round_up(shape.hidden, LANES);
        layers_.resize(shape.layers);
        for (auto& layer : layers_) {
            const int q = shape.q_size(), kv = shape.kv_size();
            const int sizes[7][2] = {{q, shape.hidden},          {kv, shape.hidden},
                                     {kv, shape.hidden},         {shape.hidden, q},
                                     {shape.ffn, shape.hidden},  {shape.ffn, shape.hidden},
                                     {shape.hidden, shape.ffn}};
            for (const auto& [outputs, inputs] : sizes) {
                if (shape.linears == Linears::ternary)
                    layer.codes.push_back(codes(generator, outputs, inputs));
                else
                    layer.dense.push_back(rows(generator, outputs, inputs));
            }
            layer.norms[0] = padded(floats(generator, shape.hidden, 0.7f, 1.3f));
            layer.norms[1] = padded(floats(generator, shape.hidden, 0.7f, 1.3f));
        }
        final_norm_ = padded(floats(generator, shape.hidden, 0.7f, 1.3f));
        const size_t angles = size_t(shape.positions) * (shape.head_dim / 2);
        cos_ = floats(generator, angles, -1.0f, 1.0f);
        sin_ = floats(generator, angles, -1.0f, 1.0f);
        embedding_ = rows(generator, shape.vocab, shape.hidden);
        head_ = rows(generator, shape.vocab, shape.hidden);
        for (int id = 0; id < shape.vocab; id++)
            if (id < shape.vocab / 2 || any(0, 9) == 0) draft_ids_.push_back(id);
        if (draft_ids_.empty()) draft_ids_.push_back(shape.vocab - 1);
    }

    std::unique_ptr<Model> make(const Kernels& kernels, int threads, bool packed_head) const {
        auto model = std::make_unique<Model>(shape, kernels, threads);
        const auto held = [&](const std::vector<float>& rows, int count, int width, Dtype dtype) {
            const Table table{reinterpret_cast<const uint8_t*>(rows.data()), Dtype::float32,
                              round_up(width, LANES)};
            return dtype == Dtype::float32 ? table : model->rounded(table, count, dtype);
        };
        for (int i = 0; i < shape.layers; i++) {
            size_t next = 0;
            const auto matrix = [&](int inputs, std::initializer_list<int> outputs) {
                Matrix built;
                built.inputs = inputs;
                for (int size : outputs) {
                    const float scale = 1.0f / std::sqrt(0.6f * float(inputs));
                    Part part{size, nullptr, scale};
                    if (shape.linears == Linears::ternary)
                        part.codes = layers_[i].codes[next].data();
                    else
                        part.table = held(layers_[i].dense[next], size, inputs, dense_dtype_);
                    built.add(part);
                    next++;
                }
                return built;
            };
            Layer layer;
            layer.qkv = matrix(shape.hidden, {shape.q_size(), shape.kv_size(), shape.kv_size()});
            layer.output = matrix(shape.q_size(), {shape.hidden});
            layer.gate_up = matrix(shape.hidden, {shape.ffn, shape.ffn});
            layer.down = matrix(shape.ffn, {shape.hidden});
            layer.attention_norm = layers_[i].norms[0];
            layer.ffn_norm = layers_[i].norms[1];
            model->set_layer(i, std::move(layer));
        }
        model->set_final_norm(final_norm_);
        model->set_rotary(cos_.data(), sin_.data());
        model->set_embedding(held(embedding_, shape.vocab, shape.hidden, Dtype::float32));
        model->set_head(held(head_, shape.vocab, shape.hidden,
                             packed_head ? Dtype::int8 : Dtype::float32));
        model->set_draft_ids(draft_ids_);
        model->finish();
        return model;
    }

    Shape shape{};

private:
    struct LayerWeights {
        std::vector<std::vector<uint8_t>> codes;
        std::vector<std::vector<float>> dense;
        std::vector<float> norms[2];
    };

    static std::vector<uint8_t> codes(Generator& generator, int outputs, int inputs) {
        const int quads = (outputs + QUAD - 1) / QUAD, blocks = (inputs + BLOCK - 1) / BLOCK;
        std::vector<uint8_t> out(size_t(quads) * blocks * BLOCK, 0x55);  // code 1: a zero weight
        for (int o = 0; o < outputs; o++)
            for (int i = 0; i < inputs; i++) {
                uint8_t& byte =
                    out[((o / QUAD * blocks + i / BLOCK) * QUAD + o % QUAD) * (BLOCK / 4) + i % 32];
                const int shift = 2 * (i % BLOCK / 32);
                byte = uint8_t((byte & ~(3 << shift)) | between(generator, 0, 2) << shift);
            }
        return out;
    }

    std::vector<float> padded(std::vector<float> values) const {
        values.resize(stride_);
        return values;
    }

    static std::vector<float> rows(Generator& generator, int count, int width) {
        const int stride = round_up(width, LANES);
        const float reach = 1.0f / std::sqrt(float(width));
        std::vector<float> rows = floats(generator, size_t(count) * stride, -reach, reach);
        for (int i = 0; i < count; i++)
            std::fill_n(rows.begin() + size_t(i) * stride + width, stride - width, 0.0f);
        return rows;
    }

    int stride_;
    Dtype dense_dtype_;
    std::vector<LayerWeights> layers_;
    std::vector<float> final_norm_, cos_, sin_, embedding_, head_;
    std::vector<int> draft_ids_;
};

// What a model says of every position of two sequences.
struct Reading {
    std::vector<float> residuals, logits, draft_logits;
    std::vector<int> tokens, drafts;
};

class Reader {
public:
    Reader(Model& model, const std::vector<std::vector<int>>& sequences, KvDtype dtype, int block_size)
        : model_(model), sequences_(sequences) {
        const Shape& shape = model.shape();
        int blocks = 0, positions = 0;
        for (const auto& tokens : sequences) {
            first_.push_back(positions);
            positions += int(tokens.size());
            tables_.emplace_back();
            for (size_t p = 0; p < tokens.size(); p += block_size) tables_.back().push_back(blocks++);
        }
        for (auto& table : tables_)
            for (int32_t& block : table) block = blocks - 1 - block;
        model.allocate(blocks, block_size, positions, dtype);
        reading_.residuals.resize(size_t(positions) * shape.hidden);
        reading_.logits.resize(size_t(positions) * shape.vocab);
        reading_.draft_logits.resize(size_t(positions) * model.draft_count());
        reading_.tokens.resize(positions);
        reading_.drafts.resize(positions);
    }

    // Up to `most` rows a sweep; now and then some stop half way and go on in the next.
    Reading read(Generator& generator, int most, bool pausing) {
        const int layers = model_.shape().layers;
        std::vector<size_t> done(sequences_.size());
        std::vector<Row> paused;
        for (;;) {
            std::vector<Row> rows = std::move(paused);
            paused.clear();
            int room = most;
            for (int s = 0; s < int(sequences_.size()); s++) {
                const bool waits = std::any_of(rows.begin(), rows.end(), [&](const Row& row) { return row.table == s; });
                if (waits) continue;
                const int left = int(sequences_[s].size() - done[s]);
                const int count = std::min({left, room, between(generator, 1, most)});
                const bool pauses = pausing && layers > 1 && between(generator, 0, 2) == 0;
                const int middle = pauses ? between(generator, 1, layers - 1) : layers;
                for (int i = 0; i < count; i++) {
                    const int position = int(done[s]++), state = first_[s] + position;
                    Row row{s, position, 0, middle, sequences_[s][position], -1, pauses ? state : -1};
                    rows.push_back(row);
                    if (pauses) paused.push_back({s, position, middle, layers, -1, state, -1});
                }
                room -= count;
            }
            if (rows.empty()) return reading_;
            run(rows);
        }
    }

private:
    void run(const std::vector<Row>& rows) {
        const Shape& shape = model_.shape();
        std::vector<float> hidden(rows.size() * shape.hidden);
        CHECK(model_.sweep(rows, tables_, hidden.data()));
        std::vector<const float*> residuals;
        std::vector<int> places;
        std::vector<Draw> draws;
        for (size_t i = 0; i < rows.size(); i++) {
            if (rows[i].last < shape.layers) continue;
            residuals.push_back(hidden.data() + i * shape.hidden);
            places.push_back(first_[rows[i].table] + rows[i].position);
            draws.push_back({rows[i].position % 2 ? 0.9 : 0.0, 5, uint32_t(rows[i].position)});
            std::copy_n(residuals.back(), shape.hidden, reading_.residuals.begin() + places.back() * shape.hidden);
        }
        const int count = int(places.size());
        const std::vector<int> depths(count, shape.layers);
        std::vector<float> full(size_t(count) * shape.vocab);
        std::vector<float> draft(size_t(count) * model_.draft_count());
        CHECK(model_.logits(residuals.data(), depths.data(), count, false, full.data()));
        CHECK(model_.logits(residuals.data(), depths.data(), count, true, draft.data()));
        std::vector<Pick> tokens(count), drafts(count);
        CHECK(model_.pick(residuals.data(), depths.data(), draws.data(), count, false, tokens.data()));
        CHECK(model_.pick(residuals.data(), depths.data(), draws.data(), count, true, drafts.data()));
        for (int i = 0; i < count; i++) {
            std::copy_n(full.begin() + i * shape.vocab, shape.vocab,
                        reading_.logits.begin() + places[i] * shape.vocab);
            std::copy_n(draft.begin() + i * model_.draft_count(), model_.draft_count(),
                        reading_.draft_logits.begin() + places[i] * model_.draft_count());
            reading_.tokens[places[i]] = tokens[i].id;
            reading_.drafts[places[i]] = drafts[i].id;
        }
    }

    Model& model_;
    const std::vector<std::vector<int>>& sequences_;
    std::vector<std::vector<int32_t>> tables_;
    std::vector<int> first_;
    Reading reading_;
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_model(int seed, int max_threads) {
    Generator generator(seed);
    const Weights weights(generator);
    const Shape& shape = weights.shape;
    std::vector<std::vector<int>> sequences(2);
    for (auto& tokens : sequences)
        for (int i = between(generator, 1, shape.positions); i > 0; i--)
            tokens.push_back(between(generator, 0, shape.vocab - 1));
    const KvDtype dtype = seed % 2 ? KvDtype::int8 : KvDtype::float16;
    const bool packed = seed % 3 != 0;
    const Kernels& scalar = *ISAS[NUM_ISAS - 1].kernels;
    const auto plain = weights.make(scalar, 1, packed);
    const Reading expected = Reader(*plain, sequences, dtype, 1).read(generator, 1, false);
    for (int i = 0; i < NUM_ISAS; i++) {
        if (!ISAS[i].runs_here()) continue;
        const auto model = weights.make(*ISAS[i].kernels, between(generator, 1, max_threads), packed);
        for (int most : {1, 5, 70}) {
            const int block_size = between(generator, 1, 17);
            const Reading actual = Reader(*model, sequences, dtype, block_size).read(generator, most, true);
            CHECK(same(actual.residuals, expected.residuals));
            CHECK(same(actual.logits, expected.logits));
            CHECK(same(actual.draft_logits, expected.draft_logits));
            CHECK(actual.tokens == expected.tokens);
            CHECK(actual.drafts == expected.drafts);
        }
    }
}

}  // namespace
}  // namespace bitskip

int main(int argc, char** argv) {
    const int models = argc > 1 ? std::atoi(argv[1]) : 10;
    const int max_threads = argc > 2 ? std::atoi(argv[2]) : 4;
    for (int seed = 0; seed < models; seed++) bitskip::test_model(seed, max_threads);
    std::printf("%d models: the same bits however they are run\n", models);
    return 0;
}
