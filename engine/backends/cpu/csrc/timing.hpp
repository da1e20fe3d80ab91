// How long work takes where nothing disturbs it.
#pragma once

#include <algorithm>
#include <chrono>

namespace bitskip {

// The least of five times, in seconds; at most one second.
template <class F>
double least_seconds(F&& work) {
    double least = 1.0;
    for (int i = 0; i < 5; i++) {
        const auto started = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
        least = std::min(least, taken.count());
    }
    return least;
}

}  // namespace bitskip
