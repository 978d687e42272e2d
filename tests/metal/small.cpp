// Small shapes of every kernel for a sanitizer, each MSL thread an OS thread. ThreadSanitizer ends the run with a status of
// its own at the first access that no barrier puts in order; AddressSanitizer, at one outside of a buffer. Numbers are
// compared as well, because a run that computes nothing has no races either.
#include "step.hpp"

#include <cmath>
#include <cstdio>

using namespace test;

int main() {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    for (uint head_dim : HEAD_DIMS) {
        for (Format format : {Format::f16, Format::f32}) {
            Step step({format, head_dim, 3, 1, 8, head_dim == 80 ? 20 : NO_WINDOW, 2}, {{35, 1}, {38, 3}}, 1);
            bool right = step.write(0);
            const std::vector<double> reference = step.reference();
            for (Route route : {Route::decode, Route::prefill}) {
                const std::vector<float> output = step.attend(route, 0);
                for (size_t i = 0; i < output.size(); i++) {
                    right = right && std::abs(output[i] - reference[i]) < 1e-5;
                }
            }
            printf("head size %u, %s: %s\n", head_dim, format == Format::f16 ? "f16" : "f32", right ? "right" : "wrong");
            if (!right) {
                return 1;
            }
        }
    }
    return 0;
}
