#include "team.hpp"

#include <cfenv>
#include <chrono>

namespace bitskip {
namespace {

// At a barrier: spin this often before giving the core away. About 50 µs: phases are shorter.
constexpr int BARRIER_SPINS = 4000;
// Between runs: the control plane needs a few hundred µs from one pass to the next, and waking a
// sleeping thread costs about 50 µs.
constexpr std::chrono::microseconds IDLE_SPIN{400};
constexpr int SPINS_PER_CLOCK = 256;

}  // namespace

Team::Team(int size) : size_(size), taken_(size) {
    threads_.reserve(size - 1);
    try {
        for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        close();  // the system has no more threads to give: those that it gave must end
        throw;
    }
}

Team::~Team() { close(); }

void Team::close() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::wait_while(const std::atomic<uint32_t>& word, uint32_t value) {
    for (int spins = 0; word.load(std::memory_order_acquire) == value; spins++) {
        if (spins < BARRIER_SPINS) {
            pause_briefly();
        } else {
            std::this_thread::yield();
        }
    }
}

void Team::start(Body body, void* argument) {
    body_ = body;
    argument_ = argument;
    job_.fetch_add(1);
    // A member that is about to sleep raises asleep_ before it looks at job_ a last time: either
    // it sees this job, or it is seen here.
    if (asleep_.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take_part(0);
}

void Team::take_part(int index) {
    Member member(*this, index);
    body_(argument_, member);
    meet([] {});
}

void Team::serve(int index) {
    std::fesetenv(FE_DFL_ENV);  // not that of whoever made the team
    for (uint32_t served = 0;; served++) {
        const auto started = std::chrono::steady_clock::now();
        while (job_.load(std::memory_order_acquire) == served && !closing_.load()) {
            for (int i = 0; i < SPINS_PER_CLOCK; i++) {
                if (job_.load(std::memory_order_acquire) != served) break;
                pause_briefly();
            }
            if (std::chrono::steady_clock::now() - started < IDLE_SPIN) continue;
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_.fetch_add(1);
            wake_.wait(lock, [&] { return job_.load() != served || closing_.load(); });
            asleep_.fetch_sub(1);
        }
        if (closing_.load()) return;
        take_part(index);
    }
}

}  // namespace bitskip
