// A team runs every piece once and its phases in order, whatever the pieces cost and whoever
// sleeps. Made for ThreadSanitizer: the data that phases hand on is plain memory.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "check.hpp"
#include "team.hpp"

namespace bitskip {
namespace {

void spend(int units) {
    volatile int sink = 0;
    for (int i = 0; i < units * 50; i++) sink = sink + i;
}

// Phases of changing sizes, each reading what the last wrote.
void test_phases(int size, int runs) {
    constexpr int COUNTS[] = {1, 2, 7, 1, 1, 0, 3, 16, 1, 5};
    Team team(size);
    std::vector<int> times(16), before(16);
    for (int run = 0; run < runs; run++) {
        std::vector<int> members(size);
        team.run([&](Team::Member& member) {
            members[member.index()]++;
            for (int phase = 0; phase < 10; phase++) {
                const int count = COUNTS[(phase + run) % 10];
                member.each(count, [&](int i) {
                    spend((i * 7 + phase) % 5);
                    times[i]++;
                });
                // Every piece of the phase is visible, to whoever runs a piece of the next.
                member.each(1, [&](int) {
                    for (int i = 0; i < 16; i++) {
                        CHECK(times[i] - before[i] == (i < count ? 1 : 0));
                        before[i] = times[i];
                    }
                });
            }
            if (run % 2) member.settle();
        });
        for (int count : members) CHECK(count == 1);
    }
}

// A run may end in a phase that nobody waits for: the caller sees all of it.
void test_loose_ends(int size, int runs) {
    Team team(size);
    for (int run = 0; run < runs; run++) {
        std::vector<int> out(run % 23);
        team.run([&](Team::Member& member) {
            member.each(int(out.size()), [&](int i) {
                spend(i % 3);
                out[i] = run + i;
            });
        });
        for (size_t i = 0; i < out.size(); i++) CHECK(out[i] == run + int(i));
    }
}

// Members fall asleep between runs, or are about to.
void test_naps(int size, int runs) {
    Team team(size);
    int total = 0;
    for (int run = 0; run < runs; run++) {
        std::this_thread::sleep_for(std::chrono::microseconds(run * 37 % 900));
        std::vector<int> out(size);
        team.run([&](Team::Member& member) { out[member.index()] = 1; });
        for (int one : out) total += one;
    }
    CHECK(total == size * runs);
}

void test_ends() {
    for (int i = 0; i < 60; i++) {
        auto team = std::make_unique<Team>(1 + i % 4);
        if (i % 3 == 1) team->run([](Team::Member&) {});
        if (i % 5 == 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // asleep
    }
}

// Two teams do not know of each other.
void test_two_teams() {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 2; caller++)
        callers.emplace_back([] { test_loose_ends(2, 200); });
    for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace bitskip

int main(int argc, char** argv) {
    const int runs = argc > 1 ? std::atoi(argv[1]) : 1000;
    for (int size = 1; size <= 4; size++) {
        bitskip::test_phases(size, runs / 4);
        bitskip::test_loose_ends(size, runs);
        bitskip::test_naps(size, runs / 20);
    }
    bitskip::test_ends();
    bitskip::test_two_teams();
    std::printf("teams of 1 to 4: all as promised\n");
    return 0;
}
