// The ternary product of many activation rows by table look-up (the "method of four Russians").
//
// A code byte names one of 81 signed sums of four activations. For each byte position a table
// holds these sums for WIDTH activation rows at once, as int16: one look-up and one addition then
// do 4 · WIDTH multiply-adds. Two tables' sums are at most 4 · 127 each, so int16 holds two
// blocks of 128 inputs, 256 · 127 = 32512, before it must be widened.
//
// Tables of eight byte positions are interleaved, [byte value][position], so that their offsets
// within an entry are short; the code bytes of a row come as one word, loaded one row ahead.

struct Eight {
    using Sums = __m128i;
    static constexpr int WIDTH = 8;
    static Sums zero() { return _mm_setzero_si128(); }
    static Sums load(const void* p) { return _mm_load_si128(static_cast<const __m128i*>(p)); }
    static void store(void* p, Sums a) { _mm_store_si128(static_cast<__m128i*>(p), a); }
    static Sums add(Sums a, Sums b) { return _mm_add_epi16(a, b); }
    static Sums sub(Sums a, Sums b) { return _mm_sub_epi16(a, b); }
    static void widen(int32_t* into, Sums a) {
        auto* p = reinterpret_cast<__m256i*>(into);
        _mm256_store_si256(p, _mm256_add_epi32(_mm256_load_si256(p), _mm256_cvtepi16_epi32(a)));
    }
};

struct Sixteen {
    using Sums = __m256i;
    static constexpr int WIDTH = 16;
    static Sums zero() { return _mm256_setzero_si256(); }
    static Sums load(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
    static void store(void* p, Sums a) { _mm256_store_si256(static_cast<__m256i*>(p), a); }
    static Sums add(Sums a, Sums b) { return _mm256_add_epi16(a, b); }
    static Sums sub(Sums a, Sums b) { return _mm256_sub_epi16(a, b); }
    static void widen(int32_t* into, Sums a) {
        Eight::widen(into, _mm256_castsi256_si128(a));
        Eight::widen(into + 8, _mm256_extracti128_si256(a, 1));
    }
};

constexpr int POSITIONS = 8;  // byte positions whose tables are alive at once: they fill half of L1
constexpr int WIDEN_BLOCKS = 2;

// Tables of byte positions j..j+7 of a block whose activations are x, BLOCK × WIDTH.
template <class Rows>
void build_tables(const int16_t* x, int j, char* tables) {
    using Sums = typename Rows::Sums;
    constexpr int SIZE = sizeof(Sums), WIDTH = Rows::WIDTH, STEP = POSITIONS * SIZE;
    for (int p = 0; p < POSITIONS; p++) {
        const auto quarter = [&](int k) { return Rows::load(x + (j + p + k * BLOCK / 4) * WIDTH); };
        const Sums x0 = quarter(0), x1 = quarter(1), x2 = quarter(2), x3 = quarter(3);
        Sums at3 = Rows::sub(Rows::zero(), Rows::add(Rows::add(x0, x1), Rows::add(x2, x3)));
        char* table = tables + p * SIZE;
        for (int c3 = 0; c3 < 3; c3++, at3 = Rows::add(at3, x3)) {
            Sums at2 = at3;
            for (int c2 = 0; c2 < 3; c2++, at2 = Rows::add(at2, x2)) {
                Sums at1 = at2;
                for (int c1 = 0; c1 < 3; c1++, at1 = Rows::add(at1, x1)) {
                    char* entry = table + (c3 << 6 | c2 << 4 | c1 << 2) * STEP;
                    const Sums middle = Rows::add(at1, x0);
                    Rows::store(entry, at1);
                    Rows::store(entry + STEP, middle);
                    Rows::store(entry + 2 * STEP, Rows::add(middle, x0));
                }
            }
        }
    }
}

inline uint64_t load_word(const uint8_t* p) {
    uint64_t word;
    __builtin_memcpy(&word, p, 8);
    return word;
}

// Adds eight look-ups to every output of `quads` quads. FIRST starts from zero, LAST widens.
template <class Rows, bool FIRST, bool LAST>
void add_lookups(const uint8_t* codes, ptrdiff_t stride, int quads, const char* tables, char* narrow,
                 int32_t* wide, bool fetch_next) {
    using Sums = typename Rows::Sums;
    constexpr int SIZE = sizeof(Sums), WIDTH = Rows::WIDTH, BYTES = BLOCK / 4;
    constexpr int SHIFT = __builtin_ctz(POSITIONS * SIZE);
    constexpr uint64_t INDEX = uint64_t(0xff) << SHIFT;
    uint64_t word = load_word(codes);
    for (int quad = 0; quad < quads; quad++) {
        if (fetch_next) {
            __builtin_prefetch(codes + QUAD * BYTES, 0, 2);
            __builtin_prefetch(codes + QUAD * BYTES + 64, 0, 2);
        }
#pragma GCC unroll 4
        for (int r = 0; r < QUAD; r++) {
            const uint64_t current = word;
            if (r == QUAD - 1 && quad + 1 < quads) codes += stride;
            word = load_word(codes + (r + 1) % QUAD * BYTES);
            asm volatile("" : "+r"(word));  // keeps the load a row ahead of its use
            Sums sums = FIRST ? Rows::zero() : Rows::load(narrow);
#pragma GCC unroll 8
            for (int p = 0; p < POSITIONS; p++) {
                // Byte p of the word times the size of an entry, in one rotation.
                const int by = (8 * p - SHIFT) & 63;
                const uint64_t offset = (by ? current >> by | current << (64 - by) : current) & INDEX;
                sums = Rows::add(sums, Rows::load(tables + offset + p * SIZE));
            }
            if (LAST) {
                Rows::widen(wide, sums);
            } else {
                Rows::store(narrow, sums);
            }
            narrow += SIZE;
            wide += WIDTH;
        }
    }
}

template <class Rows>
void ternary_table_rows(const uint8_t* codes, int blocks, const int16_t* x, int rows,
                        const int32_t* sums, int begin, int end, char* scratch, int32_t* acc,
                        ptrdiff_t acc_stride) {
    constexpr int WIDTH = Rows::WIDTH, BYTES = BLOCK / 4;
    const int quads = end - begin, outputs = quads * QUAD;
    const ptrdiff_t stride = ptrdiff_t(blocks) * QUAD * BYTES;
    char* tables = scratch;
    char* narrow = tables + 256 * POSITIONS * WIDTH * sizeof(int16_t);
    auto* wide = reinterpret_cast<int32_t*>(narrow + TABLE_TILE * WIDTH * sizeof(int16_t));
    __builtin_memset(wide, 0, ptrdiff_t(outputs) * WIDTH * sizeof(int32_t));
    for (int b = 0; b < blocks; b++) {
        for (int j = 0; j < BYTES; j += POSITIONS) {
            build_tables<Rows>(x + ptrdiff_t(b) * BLOCK * WIDTH, j, tables);
            const uint8_t* at = codes + begin * stride + ptrdiff_t(b) * QUAD * BYTES + j;
            const bool first = j == 0 && b % WIDEN_BLOCKS == 0;
            const bool last = j + POSITIONS == BYTES &&
                              (b % WIDEN_BLOCKS == WIDEN_BLOCKS - 1 || b == blocks - 1);
            const auto add = first  ? add_lookups<Rows, true, false>
                             : last ? add_lookups<Rows, false, true>
                                    : add_lookups<Rows, false, false>;
            add(at, stride, quads, tables, narrow, wide, j + POSITIONS == BYTES);
        }
    }
    // The tables hold trits, where the other kernels multiply codes: trits + 1.
    for (int m = 0; m < rows; m++) {
        int32_t* out = acc + m * acc_stride + begin * QUAD;
        for (int o = 0; o < outputs; o++) out[o] = wide[o * WIDTH + m] + sums[m];
    }
}

void ternary_table(const uint8_t* codes, int blocks, const int16_t* x, int width, int rows,
                   const int32_t* sums, int begin, int end, char* scratch, int32_t* acc,
                   ptrdiff_t acc_stride) {
    (width == Eight::WIDTH ? ternary_table_rows<Eight> : ternary_table_rows<Sixteen>)(
        codes, blocks, x, rows, sums, begin, end, scratch, acc, acc_stride);
}
