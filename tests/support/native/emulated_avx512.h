// The AVX-512 intrinsics that the kernel uses, and AMX tiles, in plain C++ for GCC and Clang on any processor.
// Names, arguments and lanes are as in Intel's Intrinsics Guide.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define TEXTMATCH_EMULATED_AVX512

using __m512 = float __attribute__((vector_size(64)));
using __m256 = float __attribute__((vector_size(32)));
using __m512i = int32_t __attribute__((vector_size(64)));
using __m256i = uint16_t __attribute__((vector_size(32)));
using __m128i = uint16_t __attribute__((vector_size(16)));
using __mmask16 = uint16_t;
using Words = uint16_t __attribute__((vector_size(64)));  // 32 lanes of a __m512i

constexpr int _MM_FROUND_TO_NEAREST_INT = 0, _MM_FROUND_NO_EXC = 8;

namespace emulated {

template <class Register>
Register load(const void* from) {
    Register values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

// A register of what `lane_at` returns for each lane.
template <class Register, class LaneAt>
Register lanes(LaneAt lane_at) {
    Register values;
    for (size_t lane = 0; lane < sizeof(Register) / sizeof values[0]; ++lane) values[lane] = lane_at(lane);
    return values;
}

inline bool has(__mmask16 mask, size_t lane) { return mask >> lane & 1; }

inline float from_half(uint16_t half) {
    const float magnitude = std::bit_cast<float>((half & 0x7fffu) << 13) * 0x1p112f;
    return half & 0x8000 ? -magnitude : magnitude;
}

// To the nearest bfloat16, ties to even.
inline uint16_t to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulated

inline __m512 _mm512_loadu_ps(const void* from) { return emulated::load<__m512>(from); }
inline __m512 _mm512_load_ps(const void* from) { return emulated::load<__m512>(from); }
inline __m512i _mm512_loadu_si512(const void* from) { return emulated::load<__m512i>(from); }
inline __m256i _mm256_loadu_si256(const void* from) { return emulated::load<__m256i>(from); }
inline void _mm512_storeu_ps(void* to, __m512 values) { std::memcpy(to, &values, sizeof values); }
inline void _mm512_storeu_si512(void* to, __m512i values) { std::memcpy(to, &values, sizeof values); }
inline void _mm512_store_si512(void* to, __m512i values) { std::memcpy(to, &values, sizeof values); }
inline void _mm256_storeu_si256(void* to, __m256i values) { std::memcpy(to, &values, sizeof values); }
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const uint16_t* from) {
    return emulated::lanes<__m256i>([&](size_t lane) { return emulated::has(mask, lane) ? from[lane] : 0; });
}

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m256i _mm256_setzero_si256() { return __m256i{}; }
inline __m512 _mm512_set1_ps(float value) { return emulated::lanes<__m512>([=](size_t) { return value; }); }
inline __m256 _mm256_set1_ps(float value) { return emulated::lanes<__m256>([=](size_t) { return value; }); }
inline __m512i _mm512_set1_epi32(int value) { return emulated::lanes<__m512i>([=](size_t) { return value; }); }
template <class... Values>  // from the last lane to the first
__m512i _mm512_set_epi32(Values... values) {
    const int32_t reversed[16] = {values...};
    return emulated::lanes<__m512i>([&](size_t lane) { return reversed[15 - lane]; });
}
template <class... Values>
__m512i _mm512_set_epi16(Values... values) {
    const uint16_t reversed[32] = {static_cast<uint16_t>(values)...};
    return (__m512i)emulated::lanes<Words>([&](size_t lane) { return reversed[31 - lane]; });
}

inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return a * b + c; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) { return a * b; }
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
    return emulated::lanes<__m512>([&](size_t lane) { return emulated::has(mask, lane) ? a[lane] : 0.0f; });
}
inline __m512 _mm512_maskz_sub_ps(__mmask16 mask, __m512 a, __m512 b) { return _mm512_maskz_mov_ps(mask, a - b); }
inline __m512 _mm512_mask_max_ps(__m512 source, __mmask16 mask, __m512 a, __m512 b) {
    const __m512 highest = _mm512_max_ps(a, b);
    return emulated::lanes<__m512>([&](size_t lane) { return emulated::has(mask, lane) ? highest[lane] : source[lane]; });
}
inline __m512 _mm512_roundscale_ps(__m512 a, int) {
    return emulated::lanes<__m512>([&](size_t lane) { return std::nearbyint(a[lane]); });
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    return emulated::lanes<__m512>([&](size_t lane) { return std::ldexp(a[lane], static_cast<int>(std::floor(b[lane]))); });
}
inline float _mm512_reduce_add_ps(__m512 a) {
    float total = 0.0f;
    for (size_t lane = 0; lane < 16; ++lane) total += a[lane];
    return total;
}
inline float _mm512_reduce_max_ps(__m512 a) {
    float highest = a[0];
    for (size_t lane = 1; lane < 16; ++lane) highest = std::max(highest, a[lane]);
    return highest;
}

inline __m512 _mm512_cvtph_ps(__m256i a) {
    return emulated::lanes<__m512>([&](size_t lane) { return emulated::from_half(a[lane]); });
}
inline __m256i _mm512_cvtneps_pbh(__m512 a) {
    return emulated::lanes<__m256i>([&](size_t lane) { return emulated::to_bf16(a[lane]); });
}
inline __m128i _mm256_cvtneps_pbh(__m256 a) {
    return emulated::lanes<__m128i>([&](size_t lane) { return emulated::to_bf16(a[lane]); });
}
inline __m512i _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
    return (__m512i)emulated::lanes<Words>(
        [&](size_t lane) { return emulated::to_bf16(lane < 16 ? low[lane] : high[lane - 16]); });
}
inline int _mm_extract_epi16(__m128i a, int lane) { return a[lane]; }

inline __m512i _mm512_i32gather_epi32(__m512i offsets, const void* base, int scale) {
    return emulated::lanes<__m512i>([&](size_t lane) {
        return emulated::load<int32_t>(static_cast<const char*>(base) + static_cast<ptrdiff_t>(offsets[lane]) * scale);
    });
}
inline __m512i _mm512_castsi256_si512(__m256i a) {
    return (__m512i)emulated::lanes<Words>([&](size_t lane) -> uint16_t { return lane < 16 ? a[lane] : 0; });
}
inline __m512i _mm512_inserti64x4(__m512i a, __m256i b, int half) {
    std::memcpy(reinterpret_cast<char*>(&a) + 32 * half, &b, sizeof b);
    return a;
}
inline __m512i _mm512_permutexvar_epi16(__m512i places, __m512i a) {
    return (__m512i)emulated::lanes<Words>([&](size_t lane) { return ((Words)a)[((Words)places)[lane] & 31]; });
}

#include "emulated_tiles.h"
