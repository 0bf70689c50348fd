// Elementwise arithmetic on AVX-512, and conversions to bfloat16.
#pragma once

// Tests compile the kernel with emulated instructions; see tests/support/native.
#ifdef TEXTMATCH_EMULATION
#include TEXTMATCH_EMULATION
#else
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

using bf16 = uint16_t;

constexpr size_t kFloats = 16;  // in a 512-bit register

// Memory aligned to cache lines: a row of a tile that spans two of them takes twice as long to load.
template <class Value>
struct LineAllocator {
    using value_type = Value;
    LineAllocator() = default;
    template <class Other>
    LineAllocator(const LineAllocator<Other>&) {}
    Value* allocate(size_t count) {
        return static_cast<Value*>(::operator new(count * sizeof(Value), std::align_val_t{64}));
    }
    void deallocate(Value* values, size_t) { ::operator delete(values, std::align_val_t{64}); }
    template <class Other>
    bool operator==(const LineAllocator<Other>&) const { return true; }
};

template <class Value>
using Lines = std::vector<Value, LineAllocator<Value>>;

inline __m512 load_half(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store_bf16(bf16* to, __m512 values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

// A mask of the first `count` (0..16) elements of a register.
inline __mmask16 first_lanes(ptrdiff_t count) {
    if (count <= 0) return 0;
    return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// e^x for x <= 0, to about 1e-6 of its value: 2^(integer) * (polynomial of the fraction).
inline __m512 exp_of_negative(__m512 x) {
    const __m512 scaled = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-80.0f)), _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(scaled, whole);
    __m512 power = _mm512_set1_ps(1.33336498e-3f);
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(9.61817700e-3f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(5.55036329e-2f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.40226463e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.93147206e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(power, whole);
}

enum class Activation : int32_t { kGeluErf = 0, kGeluTanh = 1, kRelu = 2 };

// x * Phi(x), where Phi(x) - 1/2 is an odd polynomial up to |x| = 4 and constant beyond. Least-squares fits
// (Lawson weights) that are exact at 4; off by 1.3e-4 at most, a tenth of what bfloat16 rounds away at 1.
template <Activation kind>
inline __m512 activate(__m512 x) {
    if constexpr (kind == Activation::kRelu) return _mm512_max_ps(x, _mm512_setzero_ps());
    constexpr bool is_erf = kind == Activation::kGeluErf;
    constexpr float fit[8] = {
        is_erf ? 3.982200277671117e-01f : 3.985026701670543e-01f,
        is_erf ? -6.511600679519225e-02f : -6.589316064268623e-02f,
        is_erf ? 9.06686849385926e-03f : 9.531956530236538e-03f,
        is_erf ? -8.894965540373605e-04f : -1.0092197291857188e-03f,
        is_erf ? 5.828183903100302e-05f : 7.439965538851336e-05f,
        is_erf ? -2.374003322403456e-06f : -3.5626890609255443e-06f,
        is_erf ? 5.29334542872045e-08f : 9.844055633721497e-08f,
        is_erf ? -4.746618095070916e-10f : -1.1820085663426542e-09f,
    };
    const __m512 cut = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-4.0f)), _mm512_set1_ps(4.0f));
    const __m512 square = _mm512_mul_ps(cut, cut);
    __m512 odd = _mm512_set1_ps(fit[7]);
    for (int power = 6; power >= 0; --power) odd = _mm512_fmadd_ps(odd, square, _mm512_set1_ps(fit[power]));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(odd, cut, _mm512_set1_ps(0.5f)));
}
