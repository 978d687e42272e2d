// The kernels under test, compiled from the .metal files for every head size and number format of the product.
#pragma once

#include "cpp/runtime.hpp"

namespace test {

// Number formats of the block pool.
enum class Format { f16, bf16, f32 };

struct Kernels {
    msl::Kernel reshape_and_cache;
    msl::Kernel paged_attention_decode;
    msl::Kernel paged_attention_reduce;
    msl::Kernel paged_attention_prefill;
};

#ifdef TURNMILL_FEW
constexpr uint HEAD_DIMS[] = {16, 80, 256};
#else
constexpr uint HEAD_DIMS[] = {16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256};
#endif

// For HEAD_DIMS[index].
Kernels kernels_f16(size_t index);
Kernels kernels_bf16(size_t index);
Kernels kernels_f32(size_t index);

}  // namespace test
