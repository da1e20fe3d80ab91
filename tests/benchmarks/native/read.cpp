// Reads a buffer once with several threads and does next to nothing with it: the time that no
// kernel which needs all of these bytes can beat. Built by workers/bandwidth.py.

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Sixteen independent sums, so that no load waits for an addition; the compiler makes vector
// registers of them.
std::uint64_t read_range(const std::uint64_t *words, std::size_t count) {
    constexpr std::size_t kLanes = 16;
    std::uint64_t sums[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[i + lane];
    }
    for (; i < count; ++i) sums[0] += words[i];
    std::uint64_t total = 0;
    for (std::uint64_t sum : sums) total += sum;
    return total;
}

}  // namespace

extern "C" std::uint64_t read_all(const void *buffer, std::size_t num_bytes, int num_threads) {
    const auto *words = static_cast<const std::uint64_t *>(buffer);
    const std::size_t count = num_bytes / sizeof(std::uint64_t);
    std::vector<std::uint64_t> totals(num_threads);
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t) {
        const std::size_t begin = count * t / num_threads, end = count * (t + 1) / num_threads;
        auto work = [&, t, begin, end] { totals[t] = read_range(words + begin, end - begin); };
        if (t + 1 < num_threads) {
            threads.emplace_back(work);
        } else {
            work();
        }
    }
    for (auto &thread : threads) thread.join();
    std::uint64_t total = 0;
    for (std::uint64_t partial : totals) total += partial;
    return total;
}
