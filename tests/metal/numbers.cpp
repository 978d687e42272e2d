// The kernels against a reference in double precision, over every head size, number format, group and block size of the
// product. Deterministic. Prints what each part covers and its largest error; ends with 1 at any fault.
#include "step.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <set>
#include <utility>

using namespace test;

namespace {

constexpr Format FORMATS[] = {Format::f16, Format::bf16, Format::f32};
constexpr uint GROUPS[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16};
// The product's, and one that is no power of two.
constexpr uint BLOCK_TOKENS[] = {8, 16, 32, 64, 128, 256, 24};
constexpr uint WINDOWS[] = {NO_WINDOW, 1, 20, 257};
constexpr float SOFT_CAPS[] = {0, 2};
constexpr Route ROUTES[] = {Route::by_rows, Route::decode, Route::prefill};

// Outputs are sums of values of about 1 with weights that add up to 1, in f32.
constexpr double TOLERANCE = 4e-6;

int faults = 0;

template <class T, size_t N> T pick(const T (&list)[N], size_t index) { return list[index % N]; }

// Reports a fault of `shape`; gives up after many.
void fault(const Shape &shape, Route route, const char *what, double figure) {
    printf("  head_dim %u, format %d, group %u, kv_heads %u, block_tokens %u, window %d, soft cap %g, route %d: %s %g\n",
           shape.head_dim, int(shape.format), shape.group, shape.kv_heads, shape.block_tokens, int(shape.window),
           shape.soft_cap, int(route), what, figure);
    if (++faults == 20) {
        printf("too many faults\n");
        exit(1);
    }
}

// One part of the test: its cases and their largest error.
struct Part {
    const char *name;
    double tolerance = TOLERANCE;
    uint cases = 0;
    double largest = 0;

    // Rows from `checked` on are not compared.
    void compare(const Step &step, Route route, const std::vector<float> &output, uint checked) {
        const std::vector<double> reference = step.reference();
        double largest_here = 0;
        for (size_t i = 0; i < size_t(checked) * step.shape.heads() * step.shape.head_dim; i++) {
            const double error = std::abs(output[i] - reference[i]);
            // Also if it is NaN.
            largest_here = error <= largest_here ? largest_here : error;
        }
        if (!(largest_here <= tolerance)) {
            fault(step.shape, route, "error", largest_here);
        }
        largest = largest_here <= largest ? largest : largest_here;
        cases++;
    }

    void run(const Shape &shape, const std::vector<Rows> &rows, Route route) {
        Step step(shape, rows, cases);
        if (!step.write(cases)) {
            fault(shape, route, "reshape_and_cache left a wrong pool with seed", cases);
        }
        compare(step, route, step.attend(route, cases), step.rows);
    }

    void report() const { printf("%-36s %4u cases, largest error %.2g\n", name, cases, largest); }
};

void expect(bool holds, const char *what) {
    if (!holds) {
        printf("  %s\n", what);
        faults++;
    }
}

// Contexts of one row, in one partition and two, and prompts, whole and continued.
const std::vector<Rows> MIX = {{1, 1}, {33, 1}, {5, 5}, {270, 1}, {45, 6}};

// All of head size x format x group. The rest goes round so that every pair with a block size comes up.
void every_head_size() {
    Part part{"head sizes x formats x groups"};
    std::set<std::pair<uint, uint>> head_blocks, format_blocks, group_blocks;
    for (size_t d = 0; d < std::size(HEAD_DIMS); d++) {
        for (size_t f = 0; f < std::size(FORMATS); f++) {
            for (size_t g = 0; g < std::size(GROUPS); g++) {
                const uint block_tokens = pick(BLOCK_TOKENS, d + 2 * f + 3 * g);
                Shape shape{FORMATS[f], HEAD_DIMS[d], GROUPS[g], GROUPS[g] < 4 ? 2u : 1u, block_tokens};
                shape.window = pick(WINDOWS, d + g);
                shape.soft_cap = pick(SOFT_CAPS, d + f + g / 2);
                part.run(shape, MIX, pick(ROUTES, d + f + g));
                head_blocks.insert({HEAD_DIMS[d], block_tokens});
                format_blocks.insert({uint(FORMATS[f]), block_tokens});
                group_blocks.insert({GROUPS[g], block_tokens});
            }
        }
    }
    part.report();
    const size_t blocks = std::size(BLOCK_TOKENS);
    expect(head_blocks.size() == blocks * std::size(HEAD_DIMS), "not every head size met every block size");
    expect(format_blocks.size() == blocks * std::size(FORMATS), "not every format met every block size");
#ifndef TURNMILL_FEW
    expect(group_blocks.size() == blocks * std::size(GROUPS), "not every group met every block size");
#endif
}

void every_block_size() {
    Part part{"block sizes x windows x caps x routes"};
    const std::vector<Rows> rows = {{64, 1}, {259, 1}, {50, 19}};
    for (uint block_tokens : BLOCK_TOKENS) {
        for (uint window : WINDOWS) {
            for (float soft_cap : SOFT_CAPS) {
                for (Route route : ROUTES) {
                    Shape shape{pick(FORMATS, part.cases), 80, 2, 1, block_tokens, window, soft_cap};
                    part.run(shape, rows, route);
                }
            }
        }
    }
    part.report();
}

// Prompts over several tiles of query vectors and, in the decode kernel, tasks; windows that begin after partitions.
void long_prompts() {
    Part part{"long prompts and contexts"};
    for (uint head_dim : {80u, 256u}) {
        for (uint window : {NO_WINDOW, 40u}) {
            for (uint group : {1u, 3u, 71u}) {
                const Shape shape{pick(FORMATS, part.cases), head_dim, group, group == 1 ? 3u : 1u, 16, window};
                part.run(shape, {{130, group == 71 ? 3u : 130u}, {300, 33}, {700, 1}, {513, 2}}, Route::by_rows);
            }
            part.run({Format::f16, head_dim, 3, 1, 32, window}, {{530, 9}, {1030, 1}}, Route::decode);
        }
    }
    part.report();
}

// Weights of almost 0 and 1: what is subtracted before the exponential matters.
void large_scores() {
    Part part{"large scores", 2e-4};
    for (uint head_dim : HEAD_DIMS) {
        for (Route route : ROUTES) {
            Shape shape{Format::f32, head_dim, 3, 1, 16, NO_WINDOW, part.cases % 2 ? 50.0f : 0.0f};
            shape.query_size = 60;
            part.run(shape, MIX, route);
        }
    }
    part.report();
}

// What a row does not see may hold anything: the last row's K and V are NaN, and no other row is. Its query vectors share
// a task with others in both kernels.
void unseen_nan() {
    Part part{"NaN in a later row's K and V"};
    for (uint head_dim : HEAD_DIMS) {
        for (Route route : {Route::decode, Route::prefill}) {
            Step step({Format::f16, head_dim, 3, 2, 8, part.cases % 3 ? NO_WINDOW : 7}, {{70, 1}, {41, 8}}, 7);
            step.write(1);
            for (uint i = 0; i < step.shape.kv_heads * head_dim; i++) {
                const size_t index = step.vector_index(step.sequences[1], 40, 0) + i;
                step.pool.set(index, NAN);
                step.pool.set(step.half + index, NAN);
            }
            part.compare(step, route, step.attend(route, 1), step.rows - 1);
        }
    }
    part.report();
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The order of threads between barriers does not matter.
void orders_of_threads() {
    uint runs = 0;
    for (uint head_dim : HEAD_DIMS) {
        for (Route route : {Route::decode, Route::prefill}) {
            Step step({Format::f16, head_dim, 4, 1, 16}, {{270, 1}, {45, 17}}, 3);
            step.write(0);
            const std::vector<float> first = step.attend(route, 0);
            for (uint seed = 1; seed < 6; seed++, runs++) {
                if (!same_bits(first, step.attend(route, seed))) {
                    fault(step.shape, route, "other bits with seed", seed);
                }
            }
        }
    }
    printf("%-36s %4u runs, the same bits\n", "orders of threads", runs);
}

// A row has the same bits however its prompt was cut. Not promised for a whole step on Metal, but true of these kernels.
void cut_prompts() {
    uint runs = 0;
    for (uint head_dim : HEAD_DIMS) {
        for (Route route : {Route::decode, Route::prefill}) {
            Step whole({Format::bf16, head_dim, 3, 2, 16, runs % 3 ? NO_WINDOW : 30}, {{290, 40}}, 5);
            whole.write(0);
            Step cut = whole;
            cut.sequences = {{0, 7, 250, 0}, {7, 33, 257, 0}};
            runs++;
            if (!same_bits(whole.attend(route, 1), cut.attend(route, 1))) {
                fault(whole.shape, route, "other bits when the prompt is cut before row", 7);
            }
        }
    }
    printf("%-36s %4u runs, the same bits\n", "prompts cut in two", runs);
}

template <class T, size_t N> void print_list(const char *name, const T (&list)[N]) {
    printf("%s", name);
    for (const T &item : list) {
        printf(" %g", double(item));
    }
    printf("\n");
}

}  // namespace

int main() {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    printf("formats f16 bf16 f32; windows: none, 1, 20, 257, and others; unused slots are NaN\n");
    print_list("head sizes", HEAD_DIMS);
    print_list("groups (and 71)", GROUPS);
    print_list("block sizes", BLOCK_TOKENS);
    print_list("soft caps (0: none; and 50)", SOFT_CAPS);
    every_head_size();
    every_block_size();
    long_prompts();
    large_scores();
    unseen_nan();
    orders_of_threads();
    cut_prompts();
    if (faults > 0) {
        printf("%d faults\n", faults);
        return 1;
    }
    printf("All numbers are right\n");
    return 0;
}
