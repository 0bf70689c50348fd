// AMX tiles in plain C++: the kernel's tests run with them on processors that have none.
#pragma once

#ifndef TEXTMATCH_EMULATED_AVX512
#include <immintrin.h>
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define TEXTMATCH_EMULATED_TILES

namespace emulated {

struct Tile {
    alignas(64) uint32_t rows[16][16];  // 64 bytes a row: float32 sums, or pairs of bfloat16
};

inline thread_local Tile tiles[8];

inline void load(Tile& tile, const void* from, size_t stride) {
    for (size_t row = 0; row < 16; ++row) std::memcpy(tile.rows[row], static_cast<const char*>(from) + row * stride, 64);
}

inline void store(const Tile& tile, void* to, size_t stride) {
    for (size_t row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tile.rows[row], 64);
}

using Floats = float __attribute__((vector_size(64)));
using Bits = uint32_t __attribute__((vector_size(64)));

// sums[m][n] += left[m][2k] * right[k][2n] + left[m][2k + 1] * right[k][2n + 1]. A bfloat16 is the upper half of a float32.
inline void multiply_add(Tile& sums, const Tile& left, const Tile& right) {
    Floats firsts[16], seconds[16];
    for (size_t pair = 0; pair < 16; ++pair) {
        Bits bits;
        std::memcpy(&bits, right.rows[pair], 64);
        firsts[pair] = (Floats)(bits << 16);
        seconds[pair] = (Floats)(bits & 0xffff0000u);
    }
    for (size_t row = 0; row < 16; ++row) {
        Floats totals;
        std::memcpy(&totals, sums.rows[row], 64);
        for (size_t pair = 0; pair < 16; ++pair)
            totals += std::bit_cast<float>(left.rows[row][pair] << 16) * firsts[pair] +
                      std::bit_cast<float>(left.rows[row][pair] & 0xffff0000u) * seconds[pair];
        std::memcpy(sums.rows[row], &totals, 64);
    }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) emulated::load(emulated::tiles[tile], from, stride)
#define _tile_stored(tile, to, stride) emulated::store(emulated::tiles[tile], to, stride)
#define _tile_zero(tile) (emulated::tiles[tile] = {})
#define _tile_dpbf16ps(sums, left, right) \
    emulated::multiply_add(emulated::tiles[sums], emulated::tiles[left], emulated::tiles[right])
