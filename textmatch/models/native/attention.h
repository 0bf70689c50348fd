// Attention within one text: softmax(Q K^T) V for each head, on AMX tiles.
#pragma once

#include <vector>

#include "gemm.h"

// Scratch memory of one thread.
struct AttentionScratch {
    Lines<bf16> keys, values, weights;
    Lines<float> scores;

    void fit(size_t tokens, size_t head_width) {
        const size_t wide = round_up(tokens, kTileDepth);
        if (scores.size() >= kTileRows * wide && keys.size() >= wide * head_width) return;
        keys.resize(wide * head_width);
        values.resize(wide * head_width);
        weights.resize(kTileRows * wide);
        scores.resize(kTileRows * wide);
    }
};

// The heads of one text: rows of `stride` values. Each head has `head_width` of them, a multiple of 32.
struct TextHeads {
    const bf16* queries;  // already scaled
    const bf16* keys;
    const bf16* values;
    size_t stride;
    bf16* output;
    size_t output_stride;
    size_t tokens;
    size_t head_width;
};

// 16 keys x 32 dimensions -> a tile of K^T: 16 pairs of dimensions x 16 keys.
inline void pack_keys(const bf16* from, size_t stride, size_t valid, bf16* tile) {
    alignas(64) uint32_t pairs[kTileRows][16];
    for (size_t key = 0; key < kTileRows; ++key) {
        const __m512i row = key < valid ? _mm512_loadu_si512(from + key * stride) : _mm512_setzero_si512();
        _mm512_store_si512(pairs[key], row);
    }
    const __m512i offsets = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(16));
    for (int pair = 0; pair < 16; ++pair) {
        const __m512i column = _mm512_i32gather_epi32(offsets, &pairs[0][pair], 4);
        _mm512_storeu_si512(tile + pair * kTileDepth, column);
    }
}

// 32 tokens x 16 dimensions -> a tile of V: 16 pairs of tokens x 16 dimensions. Tokens beyond `valid` are zeros.
inline void pack_values(const bf16* from, size_t stride, size_t valid, bf16* tile) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const auto row = [&](size_t token) {
        if (token >= valid) return _mm256_setzero_si256();
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + token * stride));
    };
    for (size_t pair = 0; pair < kTileRows; ++pair) {
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(row(2 * pair)), row(2 * pair + 1), 1);
        _mm512_storeu_si512(tile + pair * kTileDepth, _mm512_permutexvar_epi16(interleave, both));
    }
}

// scores (16, wide) -> weights (16, wide) in bfloat16, of which the first `tokens` of a row sum to 1. Overwrites scores.
inline void softmax(float* scores, size_t tokens, size_t wide, bf16* weights) {
    for (size_t row = 0; row < kTileRows; ++row, scores += wide, weights += wide) {
        __m512 highest = _mm512_set1_ps(-1e30f);
        for (size_t at = 0; at < tokens; at += kFloats)
            highest = _mm512_mask_max_ps(highest, first_lanes(tokens - at), highest, _mm512_loadu_ps(scores + at));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
        __m512 total = _mm512_setzero_ps();
        for (size_t at = 0; at < tokens; at += kFloats) {
            const __m512 power = exp_of_negative(_mm512_sub_ps(_mm512_loadu_ps(scores + at), top));
            const __m512 kept = _mm512_maskz_mov_ps(first_lanes(tokens - at), power);
            total = _mm512_add_ps(total, kept);
            _mm512_storeu_ps(scores + at, kept);
        }
        const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
        for (size_t at = 0; at < wide; at += kFloats) {
            const __m512 power = at < tokens ? _mm512_loadu_ps(scores + at) : _mm512_setzero_ps();
            store_bf16(weights + at, _mm512_mul_ps(power, share));
        }
    }
}

// Reads up to 15 rows after the text; their content does not matter.
inline void attend(const TextHeads& text, size_t head_count, AttentionScratch& scratch) {
    const size_t tokens = text.tokens, head_width = text.head_width;
    const size_t wide = round_up(tokens, kTileDepth);
    const size_t depth_tiles = head_width / kTileDepth;
    scratch.fit(tokens, head_width);
    alignas(64) float sums[kTileRows * kBlock];
    for (size_t head = 0; head < head_count; ++head) {
        const size_t first = head * head_width;
        for (size_t key = 0; key < wide; key += kTileRows)
            for (size_t part = 0; part < depth_tiles; ++part)
                pack_keys(text.keys + key * text.stride + first + part * kTileDepth, text.stride,
                          key < tokens ? tokens - key : 0,
                          scratch.keys.data() + (key / kTileRows * depth_tiles + part) * kTileElements);
        // Tiles of 32 tokens x 16 dimensions; those of one span of tokens are adjacent.
        for (size_t token = 0; token < wide; token += kTileDepth)
            for (size_t part = 0; part < 2 * depth_tiles; ++part)
                pack_values(text.values + token * text.stride + first + part * kTileRows, text.stride, tokens - token,
                            scratch.values.data() + (token / kTileDepth * 2 * depth_tiles + part) * kTileElements);
        for (size_t row = 0; row < tokens; row += kTileRows) {
            const bf16* queries = text.queries + row * text.stride + first;
            for (size_t key = 0; key < wide; key += 2 * kTileRows) {
                const bf16* tiles = scratch.keys.data() + key / kTileRows * depth_tiles * kTileElements;
                _tile_zero(0);
                _tile_zero(1);
                for (size_t part = 0; part < depth_tiles; ++part) {
                    _tile_loadd(4, queries + part * kTileDepth, text.stride * sizeof(bf16));
                    _tile_loadd(6, tiles + part * kTileElements, 64);
                    _tile_loadd(7, tiles + (depth_tiles + part) * kTileElements, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                }
                _tile_stored(0, scratch.scores.data() + key, wide * sizeof(float));
                _tile_stored(1, scratch.scores.data() + key + kTileRows, wide * sizeof(float));
            }
            softmax(scratch.scores.data(), tokens, wide, scratch.weights.data());
            const size_t rows = std::min(kTileRows, tokens - row);
            for (size_t part = 0; part < depth_tiles; ++part) {
                _tile_zero(0);
                _tile_zero(1);
                for (size_t token = 0; token < wide; token += kTileDepth) {
                    const bf16* tiles =
                        scratch.values.data() + (token / kTileDepth * 2 * depth_tiles + 2 * part) * kTileElements;
                    _tile_loadd(4, scratch.weights.data() + token, wide * sizeof(bf16));
                    _tile_loadd(6, tiles, 64);
                    _tile_loadd(7, tiles + kTileElements, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                }
                _tile_stored(0, sums, kBlock * sizeof(float));
                _tile_stored(1, sums + kTileRows, kBlock * sizeof(float));
                bf16* output = text.output + row * text.output_stride + first + part * kTileDepth;
                for (size_t at = 0; at < rows; ++at) {
                    store_bf16(output + at * text.output_stride, _mm512_load_ps(sums + at * kBlock));
                    store_bf16(output + at * text.output_stride + kFloats, _mm512_load_ps(sums + at * kBlock + kFloats));
                }
            }
        }
    }
}
