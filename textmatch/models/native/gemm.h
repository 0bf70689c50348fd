// Matrix products on AMX tiles: bfloat16 in, float32 sums.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "simd.h"

constexpr size_t kTileRows = 16;
constexpr size_t kTileDepth = 32;  // bfloat16 values in a row of a tile
constexpr size_t kTileElements = kTileRows * kTileDepth;
constexpr size_t kBlock = 32;  // rows and columns of the result that are summed at once: 2 x 2 tiles

constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

inline bf16 to_bf16(float value) {
    return (bf16)_mm_extract_epi16((__m128i)_mm256_cvtneps_pbh(_mm256_set1_ps(value)), 0);
}

// During the lifetime of an object, the thread's tiles are 16 rows of 64 bytes.
class TileSession {
  public:
    TileSession() {
        alignas(64) uint8_t config[64] = {};
        config[0] = 1;  // palette
        for (int tile = 0; tile < 8; ++tile) {
            config[16 + 2 * tile] = 64;
            config[48 + tile] = kTileRows;
        }
        _tile_loadconfig(config);
    }
    ~TileSession() { _tile_release(); }
    TileSession(const TileSession&) = delete;
    TileSession& operator=(const TileSession&) = delete;
};

// A (depth, columns) matrix in the order in which the tiles read it, padded with zeros: panels of 32 columns,
// in a panel for each 32 of depth two tiles, in a tile for each pair of depth 16 columns of two values.
class PackedMatrix {
  public:
    PackedMatrix() = default;

    // `value_at(depth, column)` is called for every position within the given sizes.
    template <class ValueAt>
    PackedMatrix(size_t depth, size_t columns, ValueAt value_at)
        : depth_(round_up(depth, kTileDepth)), columns_(round_up(columns, kBlock)), values_(depth_ * columns_) {
        for (size_t column = 0; column < columns; ++column)
            for (size_t at = 0; at < depth; ++at) values_[place(at, column)] = to_bf16(value_at(at, column));
    }

    size_t depth() const { return depth_; }
    size_t columns() const { return columns_; }
    const bf16* panel(size_t column) const { return values_.data() + column * depth_; }

  private:
    size_t place(size_t at, size_t column) const {
        const size_t tile = (at / kTileDepth) * 2 + (column % kBlock) / kTileRows;
        const size_t row = (at % kTileDepth) / 2;
        return (column / kBlock) * kBlock * depth_ + tile * kTileElements + row * kTileDepth +
               (column % kTileRows) * 2 + at % 2;
    }

    size_t depth_ = 0;
    size_t columns_ = 0;
    Lines<bf16> values_;
};

// Depth that is summed at once: its panel of 32 KiB stays in the first-level cache for all rows.
constexpr size_t kDepthSpan = 512;

// (rows, depth) x packed (depth, columns). `rows` is a multiple of 16; rows of `a` are `b.depth()` apart. For each block of at most
// 32 x 32 sums: `finish(row, rows, column, sums, is_first)`, where row r of the sums begins at sums + 32 r. With more than one span of
// depth, `finish` is called for each span of a block and must add the sums up.
template <class Finish>
void multiply(const bf16* a, size_t rows, const PackedMatrix& b, size_t span, Finish finish) {
    alignas(64) float sums[kBlock * kBlock];
    const size_t depth = b.depth();
    const size_t stride_bytes = depth * sizeof(bf16);
    constexpr size_t sums_stride_bytes = kBlock * sizeof(float);
    for (size_t column = 0; column < b.columns(); column += kBlock) {
        for (size_t from = 0; from < depth; from += span) {
            const size_t to = std::min(depth, from + span);
            for (size_t row = 0; row < rows; row += kBlock) {
                const bf16* panel = b.panel(column) + from * kBlock;
                const bf16* upper = a + row * depth;
                const bool has_lower = row + kTileRows < rows;
                _tile_zero(0);
                _tile_zero(1);
                if (has_lower) {
                    const bf16* lower = upper + kTileRows * depth;
                    _tile_zero(2);
                    _tile_zero(3);
                    for (size_t at = from; at < to; at += kTileDepth, panel += 2 * kTileElements) {
                        _tile_loadd(4, upper + at, stride_bytes);
                        _tile_loadd(6, panel, 64);
                        _tile_loadd(7, panel + kTileElements, 64);
                        _tile_loadd(5, lower + at, stride_bytes);
                        _tile_dpbf16ps(0, 4, 6);
                        _tile_dpbf16ps(1, 4, 7);
                        _tile_dpbf16ps(2, 5, 6);
                        _tile_dpbf16ps(3, 5, 7);
                    }
                    _tile_stored(2, sums + kTileRows * kBlock, sums_stride_bytes);
                    _tile_stored(3, sums + kTileRows * kBlock + kTileRows, sums_stride_bytes);
                } else {
                    for (size_t at = from; at < to; at += kTileDepth, panel += 2 * kTileElements) {
                        _tile_loadd(4, upper + at, stride_bytes);
                        _tile_loadd(6, panel, 64);
                        _tile_loadd(7, panel + kTileElements, 64);
                        _tile_dpbf16ps(0, 4, 6);
                        _tile_dpbf16ps(1, 4, 7);
                    }
                }
                _tile_stored(0, sums, sums_stride_bytes);
                _tile_stored(1, sums + kTileRows, sums_stride_bytes);
                finish(row, std::min(kBlock, rows - row), column, sums, from == 0);
            }
        }
    }
}
