// Runs each MSL thread as an OS thread, so that ThreadSanitizer sees every access to threadgroup and device memory
// that no barrier puts in order. Slow: for small shapes.
//
// Only barriers order memory in MSL. Lanes wait for each other in simd functions too, so that is hidden from
// ThreadSanitizer: what lanes exchange through memory needs a barrier even so.
#include "runtime.hpp"

#include <barrier>
#include <cstring>
#include <memory>
#include <thread>

// ThreadSanitizer's; absent without it.
extern "C" {
__attribute__((weak)) void AnnotateIgnoreSyncBegin(const char *file, int line);
__attribute__((weak)) void AnnotateIgnoreSyncEnd(const char *file, int line);
__attribute__((weak)) void AnnotateIgnoreReadsBegin(const char *file, int line);
__attribute__((weak)) void AnnotateIgnoreReadsEnd(const char *file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesBegin(const char *file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesEnd(const char *file, int line);
}

namespace msl {
namespace {

// While it lives, ThreadSanitizer overlooks what this thread does.
struct Hidden {
    Hidden() {
        if (AnnotateIgnoreSyncBegin) {
            AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
            AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
            AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
        }
    }
    ~Hidden() {
        if (AnnotateIgnoreSyncBegin) {
            AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
            AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
            AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
        }
    }
};

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
// The thread's copy of what its simdgroup exchanged.
alignas(16) thread_local unsigned char received[LANES][16];
std::unique_ptr<Threadgroup> threadgroup;
alignas(64) unsigned char arena[MAX_THREADGROUP_BYTES];

Simdgroup &current_simdgroup() { return threadgroup->simdgroups[running->simdgroup_index_in_threadgroup]; }

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

void simdgroup_barrier(Place) { current_simdgroup().barrier.arrive_and_wait(); }

const unsigned char (*exchange(const void *mine, size_t bytes, Place))[16] {
    const Hidden hidden;
    Simdgroup &simdgroup = current_simdgroup();
    auto &values = simdgroup.exchanged[running->simd_functions++ % 2];
    memcpy(values[running->thread_index_in_simdgroup], mine, bytes);
    simdgroup.barrier.arrive_and_wait();
    memcpy(received, values, sizeof received);
    return received;
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
