// Compiled once for each number format: with TURNMILL_KV, and TURNMILL_KERNELS for the name of the
// function. kernels.inc is made from the .metal files.
#include <metal_stdlib>

// The product defines the one size it needs; here templates are instantiated for all of them.
#define TURNMILL_HEAD_DIM 16
#include "kernels.inc"
#undef device
#undef threadgroup
#undef thread
#undef constant

#include "kernels.hpp"

#include <iterator>
#include <utility>

namespace test {
namespace {

template <uint HEAD_DIM> constexpr Kernels instantiate() {
    return {
        bind_reshape_and_cache<TURNMILL_KV, HEAD_DIM>,
        bind_paged_attention_decode<TURNMILL_KV, HEAD_DIM>,
        bind_paged_attention_reduce<TURNMILL_KV, HEAD_DIM>,
        bind_paged_attention_prefill<TURNMILL_KV, HEAD_DIM>,
    };
}

}  // namespace

Kernels TURNMILL_KERNELS(size_t index) {
    return [index]<size_t... I>(std::index_sequence<I...>) {
        const Kernels all[] = {instantiate<HEAD_DIMS[I]>()...};
        return all[index];
    }(std::make_index_sequence<std::size(HEAD_DIMS)>());
}

}  // namespace test
