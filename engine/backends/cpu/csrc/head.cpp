// Residuals to logits, or straight to tokens.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.hpp"
#include "noise.hpp"

namespace bitskip {
namespace {

constexpr int SCORE_CHUNK = 64;   // head rows that a member claims at a time
constexpr int PICK_CHUNK = 4096;  // ids whose best is found at a time

const NoiseBound NOISE_BOUND;

}  // namespace

bool Model::logits(const float* const* residuals, const int* depths, int count, bool draft,
                   float* out) {
    if (count == 0) return true;
    if (!prepare_head(residuals, depths, count)) return false;
    team_.run([&](Team::Member& member) { score(member, count, draft, out); });
    return true;
}

bool Model::pick(const float* const* residuals, const int* depths, const Draw* draws, int count,
                 bool draft, Pick* out) {
    if (count == 0) return true;
    if (!prepare_head(residuals, depths, count)) return false;
    const int width = draft ? draft_count() : shape_.vocab;
    const int chunks = pieces(width, PICK_CHUNK);
    if (head_logits_.bytes() < size_t(count) * width * sizeof(float))
        head_logits_ = Pages(size_t(round_up(count, 8)) * width * sizeof(float), Pages::Size::small);
    best_.resize(std::max<size_t>(best_.size(), size_t(count) * chunks));
    float* const logits = head_logits_.as<float>();
    std::atomic<bool> finite{true};
    team_.run([&](Team::Member& member) {
        score(member, count, draft, logits);
        member.each(count * chunks, [&](int i) {
            const int row = i / chunks, begin = i % chunks * PICK_CHUNK;
            best_[i] = best_of(logits + ptrdiff_t(row) * width, begin,
                               std::min(width, begin + PICK_CHUNK), draws[row], draft);
        });
        member.each(count, [&](int row) {
            const Best* best = best_.data() + ptrdiff_t(row) * chunks;
            float peak = best[0].logit;
            for (int i = 1; i < chunks; i++) peak = std::max(peak, best[i].logit);
            // The first of equals: chunks are in ascending order of id.
            const Best* winner = std::max_element(
                best, best + chunks, [](const Best& a, const Best& b) { return a.score < b.score; });
            if (!std::isfinite(winner->score)) finite.store(false, std::memory_order_relaxed);
            const float* row_logits = logits + ptrdiff_t(row) * width;
            const float confidence =
                draft ? 1.0f / kernels_.sum_exp(row_logits, width, peak) : 0.0f;
            out[row] = {draft ? draft_ids_[winner->slot] : winner->slot, confidence};
        });
        member.settle();
    });
    return finite.load(std::memory_order_relaxed);
}

// Norms the residuals and quantises them. False if one is not finite.
bool Model::prepare_head(const float* const* residuals, const int* depths, int count) {
    if (count > head_reserved_) {
        const int wanted = round_up(count, 8);
        const ptrdiff_t size = ptrdiff_t(wanted) * hidden_stride_;
        head_x_ = Pages(size * sizeof(float), Pages::Size::small);
        head_q_ = Pages(size * sizeof(int16_t), Pages::Size::small);
        head_steps_.resize(wanted);
        head_reserved_ = wanted;
    }
    bool finite = true;
    for (int i = 0; i < count; i++) {
        float* x = head_x_.as<float>() + ptrdiff_t(i) * hidden_stride_;
        std::memcpy(x, residuals[i], shape_.hidden * sizeof(float));
        // A norm in place leaves NaN in the padding of a row that was not finite.
        std::fill(x + shape_.hidden, x + hidden_stride_, 0.0f);
        if (depths[i] == shape_.layers || shape_.exit_norm)
            finite &= std::isfinite(
                kernels_.rms_norm(x, final_norm_.data(), shape_.hidden, shape_.eps, x));
        int16_t* q = head_q_.as<int16_t>() + ptrdiff_t(i) * hidden_stride_;
        const int limit = wide_limit(shape_.hidden);
        const float peak = kernels_.quantise_wide(x, shape_.hidden, hidden_stride_, limit, q);
        head_steps_[i] = peak / float(limit);
        finite &= std::isfinite(peak);
    }
    return finite;
}

// count × V or × drafts logits, complete when it returns.
void Model::score(Team::Member& member, int count, bool draft, float* out) {
    const Table& table = draft ? draft_head_ : head_;
    const int prefix = draft ? draft_prefix_ : shape_.vocab;
    const ptrdiff_t width = draft ? draft_count() : shape_.vocab;
    const int chunks = pieces(prefix, SCORE_CHUNK);
    member.each(chunks + int(width) - prefix, [&](int i) {
        if (i < chunks) {
            const int begin = i * SCORE_CHUNK, end = std::min(prefix, begin + SCORE_CHUNK);
            score_range(table, begin, end, count, out + begin, width);
        } else {
            const int slot = prefix + i - chunks, id = draft_ids_[slot];
            score_range(table, id, id + 1, count, out + slot, width);
        }
    });
    member.settle();
}

void Model::score_range(const Table& table, int begin, int end, int count, float* out,
                        ptrdiff_t stride) {
    const Inputs inputs{head_x_.as<float>(), head_q_.as<int16_t>(), head_steps_.data(),
                        hidden_stride_};
    multiply(table, begin, end, inputs, count, out, stride);
}

// The best slot of begin..end: the lowest of equals.
Model::Best Model::best_of(const float* logits, int begin, int end, const Draw& draw,
                           bool draft) const {
    const float peak = kernels_.max_of(logits + begin, end - begin);
    int slot = begin;
    while (slot < end - 1 && logits[slot] != peak) slot++;
    if (draw.temperature == 0.0) return {double(peak), slot, peak};

    // The likeliest goes first; after it, few can still win, and bounds tell which.
    const auto score_of = [&](int at, uint32_t word) {
        return double(logits[at]) + draw.temperature * gumbel(word);
    };
    const auto id_of = [&](int at) { return draft ? draft_ids_[at] : at; };
    const auto word_of = [&](int id) {
        return philox(draw.seed, draw.position, uint32_t(id) / 4).v[id % 4];
    };
    Best best{score_of(slot, word_of(id_of(slot))), slot, peak};
    const double reach = draw.temperature * NOISE_BOUND.greatest();
    Words words{};
    int block = -1;
    for (int at = begin; at < end; at++) {
        if (double(logits[at]) + reach < best.score) continue;
        const int id = id_of(at);
        if (id / 4 != block) {
            block = id / 4;
            words = philox(draw.seed, draw.position, uint32_t(block));
        }
        const uint32_t word = words.v[id % 4];
        if (double(logits[at]) + draw.temperature * NOISE_BOUND(word) < best.score) continue;
        const double score = score_of(at, word);
        if (score > best.score || (score == best.score && at < best.slot)) {
            best.score = score;
            best.slot = at;
        }
    }
    return best;
}

}  // namespace bitskip
