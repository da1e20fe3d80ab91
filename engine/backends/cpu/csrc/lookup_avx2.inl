// Ternary products by table look-up, on codes in tiles: [byte position][32 outputs].
//
// AVX2 multiplies bytes on one or two ports; look-ups use the others. For one or few activation
// rows a nibble, two codes, picks one of 16 partial sums from a register (`by_digits`). For many
// rows a whole byte, four codes, picks from a table in memory the partial sums of 8 or 16 rows at
// once (`by_sums`, the "method of four Russians"). Both are exact.

// --- the layout -----------------------------------------------------------------------------

// 16 rows of 16 bytes to their columns: four perfect shuffles.
inline void transpose_bytes(__m128i* rows) {
    __m128i mixed[16];
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
            mixed[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) rows[i] = mixed[i];
    }
}

void copy_tile(const uint8_t* codes, int blocks, int quads, uint8_t* tile) {
    constexpr int BYTES = BLOCK / 4, HALF = 16;
    const __m128i zeros = _mm_set1_epi8(0x55);  // four codes 1
    for (int b = 0; b < blocks; b++, tile += BYTES * TILE)
        for (int o = 0; o < TILE; o += HALF)
            for (int j = 0; j < BYTES; j += HALF) {
                __m128i rows[HALF];
                for (int r = 0; r < HALF; r++) {
                    const int quad = (o + r) / QUAD;
                    const uint8_t* from =
                        codes + ((ptrdiff_t(quad) * blocks + b) * QUAD + r % QUAD) * BYTES + j;
                    rows[r] = quad < quads ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))
                                           : zeros;
                }
                transpose_bytes(rows);
                for (int r = 0; r < HALF; r++)
                    _mm_store_si128(reinterpret_cast<__m128i*>(tile + (j + r) * TILE + o), rows[r]);
            }
}

// --- few rows -------------------------------------------------------------------------------
//
// Bytes hold only small sums, so an activation is split into two digits, q = 17·h + l with
// |l| ≤ 8 and |h| ≤ 7. A partial sum of two trits is at most 16 in the low digit; where it is
// +16 it is written as 17 − 1, so that eight of them, at most −128 or 120, fit a signed byte. Then
// one multiplication joins the digits, 1·l + 17·h, in 16 bits, which hold 256 inputs.

constexpr int DIGIT_BYTES = 64;  // tables per byte position: low and high digit, for two nibbles

void digit_tables(const int8_t* q, int blocks, int8_t* tables) {
    constexpr int POSITIONS = BLOCK / 4;
    // The trits of a nibble's first and second code, by the nibble's value.
    const __m128i first = _mm_setr_epi8(-1, 0, 1, 1, -1, 0, 1, 1, -1, 0, 1, 1, -1, 0, 1, 1);
    const __m128i second = _mm_setr_epi8(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m256i reciprocal = _mm256_set1_epi16(1928);  // 2¹⁵ / 17
    for (int b = 0; b < blocks; b++, q += BLOCK) {
        alignas(32) int8_t low[BLOCK], high[BLOCK];
        for (int i = 0; i < BLOCK; i += 16) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i));
            const __m256i h = _mm256_mulhrs_epi16(_mm256_cvtepi8_epi16(bytes), reciprocal);
            const __m128i digits = _mm_packs_epi16(_mm256_castsi256_si128(h),
                                                   _mm256_extracti128_si256(h, 1));
            const __m128i sixteen = _mm_slli_epi16(_mm_and_si128(digits, _mm_set1_epi8(0x0f)), 4);
            const __m128i rest = _mm_sub_epi8(_mm_sub_epi8(bytes, sixteen), digits);
            _mm_store_si128(reinterpret_cast<__m128i*>(high + i), digits);
            _mm_store_si128(reinterpret_cast<__m128i*>(low + i), rest);
        }
        for (int j = 0; j < POSITIONS; j++) {
#pragma GCC unroll 2
            for (int nibble = 0; nibble < 2; nibble++, tables += DIGIT_BYTES / 2) {
                const int at = j + 2 * nibble * POSITIONS;
                const auto sums = [&](const int8_t* digit) {
                    return _mm_add_epi8(
                        _mm_sign_epi8(_mm_set1_epi8(digit[at]), first),
                        _mm_sign_epi8(_mm_set1_epi8(digit[at + POSITIONS]), second));
                };
                const __m128i l = sums(low), h = sums(high);
                const __m128i carry = _mm_cmpeq_epi8(l, _mm_set1_epi8(16));
                auto* out = reinterpret_cast<__m128i*>(tables);
                _mm_store_si128(out, _mm_sub_epi8(l, _mm_and_si128(carry, _mm_set1_epi8(17))));
                _mm_store_si128(out + 1, _mm_sub_epi8(h, carry));
            }
        }
    }
}

inline __m256i both_lanes(const int8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

// TILES tiles at once, so that a table is fetched once for all of them.
template <int TILES>
inline void digits_of(const uint8_t* tile, ptrdiff_t tile_bytes, const int8_t* tables, int32_t* acc) {
    constexpr int CHUNK = 4, CHUNKS = 16, AHEAD = 512;  // byte positions per 8-bit, chunks per 16-bit sum
    const __m256i low_nibbles = _mm256_set1_epi8(0x0f), high_nibbles = _mm256_set1_epi8(char(0xf0));
    const __m256i join = _mm256_set1_epi16(0x1101);
    __m256i wide[TILES][4];
#pragma GCC unroll 2
    for (int t = 0; t < TILES; t++)
        for (int i = 0; i < 4; i++) wide[t][i] = _mm256_setzero_si256();
    const int chunks = int(tile_bytes / (TILE * CHUNK));
    for (int start = 0; start < chunks; start += CHUNKS) {
        const int count = chunks - start < CHUNKS ? chunks - start : CHUNKS;
        __m256i words[TILES][2];
#pragma GCC unroll 2
        for (int t = 0; t < TILES; t++) words[t][0] = words[t][1] = _mm256_setzero_si256();
        for (int chunk = 0; chunk < count; chunk++) {
            __m256i low[TILES], high[TILES];
#pragma GCC unroll 2
            for (int t = 0; t < TILES; t++) low[t] = high[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int p = 0; p < CHUNK; p++, tile += TILE, tables += DIGIT_BYTES) {
                if (p % 2 == 0)
#pragma GCC unroll 2
                    for (int t = 0; t < TILES; t++) __builtin_prefetch(tile + t * tile_bytes + AHEAD);
#pragma GCC unroll 2
                for (int nibble = 0; nibble < 2; nibble++) {
                    const __m256i table_l = both_lanes(tables + 32 * nibble);
                    const __m256i table_h = both_lanes(tables + 32 * nibble + 16);
#pragma GCC unroll 2
                    for (int t = 0; t < TILES; t++) {
                        const __m256i codes = load_bytes(tile + t * tile_bytes);
                        const __m256i index =
                            nibble ? _mm256_srli_epi16(_mm256_and_si256(codes, high_nibbles), 4)
                                   : _mm256_and_si256(codes, low_nibbles);
                        low[t] = _mm256_add_epi8(low[t], _mm256_shuffle_epi8(table_l, index));
                        keep_here(low[t]);
                        high[t] = _mm256_add_epi8(high[t], _mm256_shuffle_epi8(table_h, index));
                        keep_here(high[t]);
                    }
                }
            }
#pragma GCC unroll 2
            for (int t = 0; t < TILES; t++) {
                const __m256i even = _mm256_unpacklo_epi8(low[t], high[t]);
                const __m256i odd = _mm256_unpackhi_epi8(low[t], high[t]);
                words[t][0] = _mm256_add_epi16(words[t][0], _mm256_maddubs_epi16(join, even));
                words[t][1] = _mm256_add_epi16(words[t][1], _mm256_maddubs_epi16(join, odd));
            }
        }
#pragma GCC unroll 2
        for (int t = 0; t < TILES; t++)
            for (int i = 0; i < 2; i++) {
                const __m128i front = _mm256_castsi256_si128(words[t][i]);
                const __m128i back = _mm256_extracti128_si256(words[t][i], 1);
                wide[t][i] = _mm256_add_epi32(wide[t][i], _mm256_cvtepi16_epi32(front));
                wide[t][2 + i] = _mm256_add_epi32(wide[t][2 + i], _mm256_cvtepi16_epi32(back));
            }
    }
    for (int t = 0; t < TILES; t++)
        for (int i = 0; i < 4; i++)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + t * TILE + i * 8), wide[t][i]);
}

void by_digits(const uint8_t* tiles, int blocks, const int8_t* tables, int begin, int end,
               int32_t* acc) {
    const ptrdiff_t tile_bytes = ptrdiff_t(blocks) * BLOCK / 4 * TILE;
    int t = begin;
    for (; t + 2 <= end; t += 2)
        digits_of<2>(tiles + t * tile_bytes, tile_bytes, tables, acc + t * TILE);
    if (t < end) digits_of<1>(tiles + t * tile_bytes, tile_bytes, tables, acc + t * TILE);
}

// --- many rows ------------------------------------------------------------------------------
//
// For each byte position a table holds the sums that the 81 code bytes name, for WIDTH rows at
// once, as int16: one look-up and one addition then do 4 · WIDTH multiply-adds. A sum is at most
// 4 · 127, so int16 holds two blocks of 128 inputs, 256 · 127 = 32512, before it must be widened.
//
// Tables of eight byte positions are interleaved, [byte value][position], so that their offsets
// within an entry are short; one position's code bytes of eight outputs come as one word.

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

// The codes of one byte position of eight outputs.
inline uint64_t load_word(const uint8_t* codes) {
    uint64_t word;
    __builtin_memcpy(&word, codes, sizeof word);
    return word;
}

// Adds eight look-ups to every output of `tiles` tiles. FIRST starts from zero, LAST widens.
//
// A look-up is three instructions: rotate, mask, add from memory. Zen 1 starts five a cycle and
// two memory operations, the loads and stores of sums among them: 0.69 cycles for 8 rows at
// best, 0.80 measured. A function of its own, so that its sums get all the registers.
template <class Rows, bool FIRST, bool LAST>
__attribute__((noinline)) void add_lookups(const uint8_t* codes, ptrdiff_t tile_bytes, int tiles,
                                           const char* tables, char* narrow, int32_t* wide) {
    using Sums = typename Rows::Sums;
    constexpr int SIZE = sizeof(Sums), WIDTH = Rows::WIDTH, GROUP = 8;
    constexpr int SHIFT = __builtin_ctz(POSITIONS * SIZE);
    constexpr uint64_t INDEX = uint64_t(0xff) << SHIFT;
    // Each word is loaded a position ahead: word, index and entry are a chain of latencies.
    uint64_t ahead = load_word(codes);
    for (int t = 0; t < tiles; t++) {
        for (int i = 0; i < POSITIONS * TILE; i += 64) __builtin_prefetch(codes + 2 * tile_bytes + i);
        const uint8_t* const next_tile = codes + (t + 1 < tiles ? tile_bytes : 0);
        for (int o = 0; o < TILE; o += GROUP) {
            const uint8_t* const next_group = o + GROUP < TILE ? codes + o + GROUP : next_tile;
            Sums sums[GROUP];
#pragma GCC unroll 8
            for (int i = 0; i < GROUP; i++)
                sums[i] = FIRST ? Rows::zero() : Rows::load(narrow + i * SIZE);
#pragma GCC unroll 8
            for (int p = 0; p < POSITIONS; p++) {
                const uint64_t word = ahead;
                ahead = load_word(p + 1 < POSITIONS ? codes + o + (p + 1) * TILE : next_group);
                asm volatile("" : "+r"(ahead));  // here, ahead of its use
#pragma GCC unroll 8
                for (int i = 0; i < GROUP; i++) {
                    // Byte i of the word times the size of an entry, in one rotation.
                    const int by = (8 * i - SHIFT) & 63;
                    const uint64_t offset = (by ? word >> by | word << (64 - by) : word) & INDEX;
                    sums[i] = Rows::add(sums[i], Rows::load(tables + offset + p * SIZE));
                    asm("" : "+x"(sums[i]));  // eight chains side by side, not one after another
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < GROUP; i++) {
                if (LAST) {
                    Rows::widen(wide + i * WIDTH, sums[i]);
                } else {
                    Rows::store(narrow + i * SIZE, sums[i]);
                }
            }
            narrow += GROUP * SIZE;
            wide += GROUP * WIDTH;
        }
        codes = next_tile;
    }
}

// acc[m][o] = wide[o][m], for 8 outputs and up to 8 rows.
inline void transpose(const int32_t* wide, int width, int rows, int32_t* acc, ptrdiff_t acc_stride) {
    __m256i in[8], pair[8], four[8];
    for (int o = 0; o < 8; o++)
        in[o] = _mm256_load_si256(reinterpret_cast<const __m256i*>(wide + o * width));
    for (int o = 0; o < 8; o += 2) {
        pair[o] = _mm256_unpacklo_epi32(in[o], in[o + 1]);
        pair[o + 1] = _mm256_unpackhi_epi32(in[o], in[o + 1]);
    }
    for (int o = 0; o < 8; o += 4)
        for (int i = 0; i < 2; i++) {
            four[o + 2 * i] = _mm256_unpacklo_epi64(pair[o + i], pair[o + i + 2]);
            four[o + 2 * i + 1] = _mm256_unpackhi_epi64(pair[o + i], pair[o + i + 2]);
        }
    for (int m = 0; m < rows; m++) {
        const __m256i row = m < 4 ? _mm256_permute2x128_si256(four[m], four[m + 4], 0x20)
                                  : _mm256_permute2x128_si256(four[m - 4], four[m], 0x31);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + m * acc_stride), row);
    }
}

template <class Rows>
void by_sums_of(const uint8_t* tiles, int blocks, const int16_t* x, int rows, int begin, int end,
                char* scratch, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int WIDTH = Rows::WIDTH, BYTES = BLOCK / 4;
    const int outputs = (end - begin) * TILE;
    const ptrdiff_t tile_bytes = ptrdiff_t(blocks) * BYTES * TILE;
    char* tables = scratch;
    char* narrow = tables + 256 * POSITIONS * WIDTH * sizeof(int16_t);
    auto* wide = reinterpret_cast<int32_t*>(narrow + LOOKUP_TILES * TILE * WIDTH * sizeof(int16_t));
    __builtin_memset(wide, 0, ptrdiff_t(outputs) * WIDTH * sizeof(int32_t));
    for (int b = 0; b < blocks; b++) {
        for (int j = 0; j < BYTES; j += POSITIONS) {
            build_tables<Rows>(x + ptrdiff_t(b) * BLOCK * WIDTH, j, tables);
            const uint8_t* codes = tiles + begin * tile_bytes + (ptrdiff_t(b) * BYTES + j) * TILE;
            const bool first = j == 0 && b % WIDEN_BLOCKS == 0;
            const bool last = j + POSITIONS == BYTES &&
                              (b % WIDEN_BLOCKS == WIDEN_BLOCKS - 1 || b == blocks - 1);
            const auto add = first  ? add_lookups<Rows, true, false>
                             : last ? add_lookups<Rows, false, true>
                                    : add_lookups<Rows, false, false>;
            add(codes, tile_bytes, end - begin, tables, narrow, wide);
        }
    }
    for (int m = 0; m < rows; m += 8)
        for (int o = 0; o < outputs; o += 8)
            transpose(wide + o * WIDTH + m, WIDTH, rows - m < 8 ? rows - m : 8,
                      acc + m * acc_stride + begin * TILE + o, acc_stride);
}

void by_sums(const uint8_t* tiles, int blocks, const int16_t* x, int width, int rows, int begin,
             int end, char* scratch, int32_t* acc, ptrdiff_t acc_stride) {
    (width == Eight::WIDTH ? by_sums_of<Eight> : by_sums_of<Sixteen>)(
        tiles, blocks, x, rows, begin, end, scratch, acc, acc_stride);
}

constexpr Lookups LOOKUPS = {copy_tile, digit_tables, by_digits, by_sums};
