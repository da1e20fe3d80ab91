// A persistent team of threads that runs one function together, phase by phase.
//
// The caller is member 0. Between runs the others spin briefly, then sleep. Within a run the
// members meet at barriers. Of a phase's pieces each member has a share of neighbours, which it
// takes in order, so that memory is read in long runs; who is done helps the others. Who computes
// a piece is thus left to chance, how it is computed never is.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace bitskip {

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Team {
public:
    // One thread's way to take part in a run.
    class Member {
    public:
        int index() const { return index_; }

        // Runs f(0) .. f(count - 1), each once, spread over the team. All that earlier phases
        // wrote can be read. A single piece is run by whoever arrives last, which saves a barrier.
        template <class F>
        void each(int count, F&& f) {
            if (count == 1) {
                team_.meet([&] { f(0); });
                loose_ = false;
                return;
            }
            settle();
            for (int k = 0; k < team_.size_; k++) {
                const int owner = (index_ + k) % team_.size_;
                const int begin = team_.share(count, owner), end = team_.share(count, owner + 1);
                std::atomic<int>& taken = team_.taken_[owner].count;
                for (int i; (i = begin + taken.fetch_add(1, std::memory_order_relaxed)) < end;) f(i);
            }
            loose_ = true;
        }

        // Waits until everybody has finished the last phase.
        void settle() {
            if (loose_) team_.meet([] {});
            loose_ = false;
        }

    private:
        friend class Team;
        Member(Team& team, int index) : team_(team), index_(index) {}
        Team& team_;
        int index_;
        bool loose_ = false;
    };

    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Every member runs body(member); returns when all have. Not reentrant.
    template <class F>
    void run(F&& body) {
        start([](void* f, Member& member) { (*static_cast<F*>(f))(member); }, &body);
    }

private:
    using Body = void (*)(void*, Member&);

    struct alignas(64) Taken {
        std::atomic<int> count{0};
    };

    // Where the share of a member begins.
    int share(int count, int member) const { return int(int64_t(count) * member / size_); }

    // Waits for the whole team; the last to arrive runs `last` before anybody goes on.
    template <class F>
    void meet(F&& last) {
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            last();
            arrived_.store(0, std::memory_order_relaxed);
            for (Taken& taken : taken_) taken.count.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
        } else {
            wait_while(round_, round);
        }
    }

    static void wait_while(const std::atomic<uint32_t>& word, uint32_t value);
    void start(Body body, void* argument);
    void take_part(int index);
    void serve(int index);
    void close();

    const int size_;
    Body body_ = nullptr;
    void* argument_ = nullptr;

    std::vector<Taken> taken_;  // of each member's share
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> job_{0};  // counts runs
    std::atomic<int> asleep_{0};
    std::atomic<bool> closing_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace bitskip
