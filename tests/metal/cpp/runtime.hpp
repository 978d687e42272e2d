// Runs MSL threads on a CPU, one threadgroup after the other: what the stand-in for metal_stdlib and the tests
// build on. fibres.cpp and os_threads.cpp are two ways to run the threads of a threadgroup.
//
// Stricter than Metal: all 32 lanes must reach each simd function, all threads each barrier, both at the same place
// in the source. Whatever does not is reported with its place and ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <source_location>
#include <vector>

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long ulong;
typedef uint uint3 __attribute__((ext_vector_type(3)));
typedef float float4 __attribute__((ext_vector_type(4)));

namespace msl {

using Place = std::source_location;

constexpr uint LANES = 32;
// Apple's limits, all families.
constexpr uint MAX_THREADS = 1024;
constexpr size_t MAX_THREADGROUP_BYTES = 32 << 10;

// A thread of the grid. Members that MSL has as attributes are called like them.
struct Thread {
    uint3 threadgroup_position_in_grid;
    uint thread_index_in_threadgroup;
    uint thread_index_in_simdgroup;
    uint simdgroup_index_in_threadgroup;

    // Bytes of threadgroup memory given out so far; the same for all threads at the same place.
    size_t threadgroup_bytes = 0;
    // Simd functions called so far.
    uint simd_functions = 0;
};

// What the host bound, by index.
struct Buffers {
    std::vector<const void *> bound;

    struct Pointer {
        void *address;
        template <class T> operator T *() const { return static_cast<T *>(address); }
    };
    struct Reference {
        void *address;
        template <class T> operator T &() const { return *static_cast<T *>(address); }
    };
    Pointer pointer(size_t index) const { return {const_cast<void *>(bound.at(index))}; }
    Reference reference(size_t index) const { return {const_cast<void *>(bound.at(index))}; }
};

using Kernel = void (*)(const Buffers &, const Thread &);

// Runs `kernel` over `grid` threadgroups of `threads` threads (a multiple of 32). `seed` sets the order of the threads,
// where that is ours to set.
void dispatch(Kernel kernel, uint3 grid, uint threads, const Buffers &buffers, uint seed);

// ---- For the stand-in: called by kernels through metal_stdlib

// The thread that is running.
Thread &current();

void threadgroup_barrier(Place place);
void simdgroup_barrier(Place place);

// Gives all lanes' values of this simd function, each in 16 bytes, once all lanes have called it.
const unsigned char (*exchange(const void *mine, size_t bytes, Place place))[16];

// The threadgroup's memory: filled with NaN before each threadgroup.
unsigned char *threadgroup_arena();

[[noreturn]] inline void fail(const char *what, Place place) {
    fprintf(stderr, "%s:%u: %s\n", place.file_name(), unsigned(place.line()), what);
    _Exit(1);
}

template <class T> T *threadgroup_memory(size_t count, Place place = Place::current()) {
    size_t &used = current().threadgroup_bytes;
    T *memory = reinterpret_cast<T *>(threadgroup_arena() + used);
    used += (count * sizeof(T) + 15) / 16 * 16;
    if (used > MAX_THREADGROUP_BYTES) {
        fail("more than 32 KiB of threadgroup memory", place);
    }
    return memory;
}

}  // namespace msl
