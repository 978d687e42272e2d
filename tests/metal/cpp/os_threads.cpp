// Runs each MSL thread as an OS thread, so that ThreadSanitizer sees every access to threadgroup and device memory
// that no barrier puts in order. Slow: for small shapes.
#include "runtime.hpp"

#include <barrier>
#include <cstring>
#include <memory>
#include <thread>

namespace msl {
namespace {

struct Simdgroup {
    std::barrier<> barrier{LANES};
    // Values of a simd function and of the one before it, which slow lanes may still be reading.
    alignas(16) unsigned char exchanged[2][LANES][16];
};

struct Threadgroup {
    explicit Threadgroup(uint threads) : barrier(threads), simdgroups(threads / LANES) {}
    std::barrier<> barrier;
    std::vector<Simdgroup> simdgroups;
};

thread_local Thread *running;
std::unique_ptr<Threadgroup> threadgroup;
alignas(64) unsigned char arena[MAX_THREADGROUP_BYTES];

void run_threadgroup(Kernel kernel, uint3 position, uint threads, const Buffers &buffers) {
    memset(arena, 0xff, sizeof arena);
    threadgroup = std::make_unique<Threadgroup>(threads);
    std::vector<std::thread> handles;
    for (uint i = 0; i < threads; i++) {
        handles.emplace_back([=, &buffers] {
            Thread thread{position, i, i % LANES, i / LANES};
            running = &thread;
            kernel(buffers, thread);
        });
    }
    for (auto &handle : handles) {
        handle.join();
    }
}

}  // namespace

Thread &current() { return *running; }

unsigned char *threadgroup_arena() { return arena; }

void threadgroup_barrier(Place) { threadgroup->barrier.arrive_and_wait(); }

const unsigned char (*exchange(const void *mine, size_t bytes, Place))[16] {
    Simdgroup &simdgroup = threadgroup->simdgroups[running->simdgroup_index_in_threadgroup];
    auto &values = simdgroup.exchanged[running->simd_functions++ % 2];
    memcpy(values[running->thread_index_in_simdgroup], mine, bytes);
    simdgroup.barrier.arrive_and_wait();
    return values;
}

void dispatch(Kernel kernel, uint3 grid, uint threads, const Buffers &buffers, uint) {
    for (uint z = 0; z < grid.z; z++) {
        for (uint y = 0; y < grid.y; y++) {
            for (uint x = 0; x < grid.x; x++) {
                run_threadgroup(kernel, uint3{x, y, z}, threads, buffers);
            }
        }
    }
}

}  // namespace msl
