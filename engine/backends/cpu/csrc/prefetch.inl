// How weights are asked for ahead of their use, by the number of activation rows.
//
// Eight kilobytes ahead: at one or two, as the hardware's own prefetchers look, one row took half as
// long again (Zen 5). What a group of rows reads, a full one apart, which others may follow, is read
// once: it goes by the outer caches and leaves there what the interpreter needs for its part of a
// round, which took twice as long otherwise.

constexpr int AHEAD = 8192;

template <int ROWS>
inline void prefetch(const void* p) {
    __builtin_prefetch(static_cast<const char*>(p) + AHEAD, 0, ROWS < MAX_GEMM_ROWS ? 0 : 3);
}
