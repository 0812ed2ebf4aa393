// Products of row-major matrices, computed in tiles: small blocks of the result whose sums stay in registers.
//
// In all of native/ "tile" means such a block, whose size is in simd.h; a tile of an image is called an image tile.
// `ld`, `lda`, `ldw` and so on are distances from one row of a matrix to the next, in numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "simd.h"

namespace multipatch {

// Most terms that one accumulator sums. Its error grows with the square root of their number. With blocks of 256 terms,
// whose sums are then added up, a whole tower is as far from float64 as the reference.
constexpr int64_t kDepth = 256;
constexpr int64_t kRowBlock = 24;  // rows of the left side that stay in L1 while the columns stream by from L2
constexpr int64_t kAhead = 8;      // how many rows ahead of packing the right side is prefetched

// The number of blocks of size `of` that cover n; the last block may be smaller.
constexpr int64_t Count(int64_t n, int64_t of) { return (n + of - 1) / of; }
constexpr int64_t RoundUp(int64_t n, int64_t to) { return Count(n, to) * to; }

// The distance between rows of scratch memory that hold `n` numbers. A row has room for whole tiles. The distance is
// never a multiple of 4096 bytes, because then a column of all rows would fall into one set of the cache.
inline int64_t Stride(int64_t n) {
  const int64_t stride = RoundUp(n, kColumns) + 16;
  return stride % 1024 ? stride : stride + 16;
}

// Computes one tile: c = a b, or c += a b where `add`. c has R rows of V vectors, a has R rows of `depth` numbers. b is
// packed: `depth` rows of V vectors, one right after another.
template <int R, int V>
void Tile(const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc, bool add) {
  Vec sums[R][V];
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 3
    for (int j = 0; j < V; j++) {
      sums[i][j] = Vec{};
      __builtin_prefetch(c + i * ldc + j * kLanes, 1);
    }
  }
  constexpr int kGroups = (R + 2) / 3;  // a pointer for every three rows: x86 adds 0, 1 or 2 times lda for free
  const float* rows[kGroups];
  for (int g = 0; g < kGroups; g++) rows[g] = a + 3 * g * lda;
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; k++) {
    Vec columns[V];
    for (int j = 0; j < V; j++) columns[j] = Load(b + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const float left = rows[i / 3][i % 3 * lda];
      for (int j = 0; j < V; j++) sums[i][j] += left * columns[j];
    }
    for (int g = 0; g < kGroups; g++) rows[g]++;
    b += V * kLanes;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 3
    for (int j = 0; j < V; j++) {
      float* to = c + i * ldc + j * kLanes;
      Store(to, add ? Load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

using TileFunction = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

// Tiles at the border of a matrix are smaller, so there is a function for every size: kTiles[rows - 1][vectors - 1].
template <int R, int... V>
constexpr std::array<TileFunction, kVectors> TilesOfRows(std::integer_sequence<int, V...>) {
  return {Tile<R, V + 1>...};
}
template <int... R>
constexpr std::array<std::array<TileFunction, kVectors>, kRows> AllTiles(std::integer_sequence<int, R...>) {
  return {TilesOfRows<R + 1>(std::make_integer_sequence<int, kVectors>())...};
}
inline constexpr auto kTiles = AllTiles(std::make_integer_sequence<int, kRows>());

// The width in vectors of the panel (see Pack) that starts `left` columns before the last one ends.
inline int64_t PanelVectors(int64_t left) { return std::min<int64_t>(kVectors, Count(left, kLanes)); }

// Copies a matrix w of `depth` rows and `columns` columns into panels of kColumns columns. Panels lie one after
// another, and so do the rows of a panel. The last panel may be narrower: as many vectors as its columns need, filled
// up with zeros.
inline void Pack(const float* w, int64_t ldw, int64_t depth, int64_t columns, float* out) {
  const int64_t whole = columns / kColumns * kColumns, width = PanelVectors(columns - whole) * kLanes;
  for (int64_t k = 0; k < depth; k++, w += ldw) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(w + kAhead * ldw + j);
    for (int64_t j = 0; j < whole; j += kColumns) {
      for (int v = 0; v < kVectors; v++) Store(out + j * depth + k * kColumns + v * kLanes, Load(w + j + v * kLanes));
    }
    float* last = out + whole * depth + k * width;
    for (int64_t i = 0; i < width; i++) last[i] = whole + i < columns ? w[whole + i] : 0.0f;
  }
}

// Prefetches a block of a matrix into L2 while something else is computed. Each Step() fetches a few cache lines, so
// that `steps` calls fetch the whole block.
class Ahead {
 public:
  Ahead(const float* block, int64_t ld, int64_t rows, int64_t columns, int64_t steps)
      : block_(block), ld_(ld), columns_(columns), lines_(Count(rows * columns / 16, steps)) {}

  void Step() {
    for (int64_t i = 0; i < lines_; i++) {
      __builtin_prefetch(block_ + at_, 0, 2);
      at_ += 16;
      if (at_ >= columns_) {
        at_ = 0;
        block_ += ld_;
      }
    }
  }

 private:
  const float* block_;
  int64_t ld_, columns_, lines_, at_ = 0;
};

// Computes c = a b, or c += a b where `add`, for c (rows x columns), a (rows x depth) and b as Pack leaves it. It calls
// done(row, column, rows, columns) after each tile, which can work on the tile while it is in L1.
template <typename Done>
void Multiply(const float* a, int64_t lda, const float* packed, int64_t rows, int64_t depth, int64_t columns, float* c,
              int64_t ldc, bool add, Done done) {
  for (int64_t row = 0; row < rows; row += kRowBlock) {
    const int64_t end = std::min(rows, row + kRowBlock);
    for (int64_t j = 0; j < columns; j += kColumns) {
      const int64_t vectors = PanelVectors(columns - j);
      for (int64_t i = row; i < end; i += kRows) {
        const int64_t height = std::min<int64_t>(kRows, end - i);
        kTiles[height - 1][vectors - 1](a + i * lda, lda, packed + j * depth, depth, c + i * ldc + j, ldc, add);
        done(i, j, height, std::min<int64_t>(kColumns, columns - j));
      }
    }
  }
}

}  // namespace multipatch
