// Runs each MSL thread as a fibre (a stack of its own, no OS thread), in a random order that a seed gives: a missing
// barrier shows as a result that depends on the seed, and the same seed gives the same order.
//
// A fibre runs until it waits for others or returns. Fibres start through ucontext and then switch by _setjmp and
// _longjmp, which leave the signal mask alone and so make no system call.
#include "runtime.hpp"

#include <csetjmp>
#include <cstring>
#include <memory>
#include <random>
#include <ucontext.h>

namespace msl {
namespace {

enum class State { runnable, at_barrier, at_simd_function, returned };

struct Fibre {
    Thread thread;
    State state = State::returned;
    Place place;
    jmp_buf resume;
    std::unique_ptr<char[]> stack;
};

constexpr size_t STACK_BYTES = 128 << 10;

Fibre fibres[MAX_THREADS];
Fibre *running;
jmp_buf scheduler;
Kernel kernel;
const Buffers *buffers;
std::mt19937 random_bits;
alignas(64) unsigned char arena[MAX_THREADGROUP_BYTES];
// Values of a simd function and of the one before it, which slow lanes may still be reading.
alignas(16) unsigned char exchanged[MAX_THREADS / LANES][2][LANES][16];

void leave(State state) {
    running->state = state;
    if (_setjmp(running->resume) == 0) {
        _longjmp(scheduler, 1);
    }
}

void wait(State state, Place place) {
    running->place = place;
    leave(state);
}

void fibre_main() {
    for (;;) {
        kernel(*buffers, running->thread);
        leave(State::returned);
    }
}

void run(Fibre &fibre) {
    running = &fibre;
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (fibre.stack) {
        _longjmp(fibre.resume, 1);
    }
    fibre.stack = std::make_unique<char[]>(STACK_BYTES);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibre.stack.get();
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, fibre_main, 0);
    setcontext(&context);
}

bool same(Place a, Place b) { return a.line() == b.line() && a.column() == b.column(); }

// Runs each lane once, then sees whether they may go on. True if the simdgroup can run again by itself.
bool run_simdgroup(Fibre *lanes) {
    // i -> start + i * step runs through all lanes, because the step is odd.
    const uint start = random_bits(), step = random_bits() | 1;
    for (uint i = 0; i < LANES; i++) {
        run(lanes[(start + i * step) % LANES]);
    }
    for (uint i = 1; i < LANES; i++) {
        if (lanes[i].state != lanes[0].state ||
            (lanes[0].state != State::returned && !same(lanes[i].place, lanes[0].place))) {
            const bool returned = lanes[i].state == State::returned;
            fail("not all lanes of the simdgroup come here", lanes[returned ? 0 : i].place);
        }
    }
    if (lanes[0].state != State::at_simd_function) {
        return false;
    }
    for (uint i = 0; i < LANES; i++) {
        lanes[i].state = State::runnable;
    }
    return true;
}

// Lets simdgroups that wait at a barrier go on. False if all have returned.
bool pass_barrier(uint threads) {
    for (uint i = LANES; i < threads; i += LANES) {
        if (fibres[i].state != fibres[0].state ||
            (fibres[0].state != State::returned && !same(fibres[i].place, fibres[0].place))) {
            const bool returned = fibres[i].state == State::returned;
            fail("not all simdgroups come to this barrier", fibres[returned ? 0 : i].place);
        }
    }
    if (fibres[0].state == State::returned) {
        return false;
    }
    for (uint i = 0; i < threads; i++) {
        fibres[i].state = State::runnable;
    }
    return true;
}

void run_threadgroup(uint3 position, uint threads) {
    memset(arena, 0xff, sizeof arena);
    for (uint i = 0; i < threads; i++) {
        fibres[i].thread = Thread{position, i, i % LANES, i / LANES};
        fibres[i].state = State::runnable;
    }
    std::vector<uint> ready;
    do {
        for (uint i = 0; i < threads; i += LANES) {
            ready.push_back(i);
        }
        while (!ready.empty()) {
            const size_t pick = random_bits() % ready.size();
            if (!run_simdgroup(fibres + ready[pick])) {
                ready[pick] = ready.back();
                ready.pop_back();
            }
        }
    } while (pass_barrier(threads));
}

}  // namespace

Thread &current() { return running->thread; }

unsigned char *threadgroup_arena() { return arena; }

void threadgroup_barrier(Place place) { wait(State::at_barrier, place); }

void simdgroup_barrier(Place place) { wait(State::at_simd_function, place); }

const unsigned char (*exchange(const void *mine, size_t bytes, Place place))[16] {
    Thread &thread = running->thread;
    auto &values = exchanged[thread.simdgroup_index_in_threadgroup][thread.simd_functions++ % 2];
    memcpy(values[thread.thread_index_in_simdgroup], mine, bytes);
    wait(State::at_simd_function, place);
    return values;
}

void dispatch(Kernel of, uint3 grid, uint threads, const Buffers &bound, uint seed) {
    kernel = of;
    buffers = &bound;
    random_bits.seed(seed);
    for (uint z = 0; z < grid.z; z++) {
        for (uint y = 0; y < grid.y; y++) {
            for (uint x = 0; x < grid.x; x++) {
                run_threadgroup(uint3{x, y, z}, threads);
            }
        }
    }
}

}  // namespace msl
