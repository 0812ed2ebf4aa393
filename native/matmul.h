// Products of row-major matrices, computed in tiles: small blocks of the result whose sums stay in registers.
//
// In all of native/ "tile" means such a block, whose size is in simd.h; a tile of an image is called an image tile.
// `ld`, `lda`, `ldw` and so on are distances from one row of a matrix to the next, in numbers.
//
// A product multiplies float32 numbers, or pairs of bfloat16 numbers (`Term` is float or Pair). To this file, a pair is
// one number of 32 bits: a matrix of bfloat16 with 2 n columns is one of n pairs. Sums are float32 in both.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
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

// How many numbers of a matrix a term holds.
template <typename Term>
constexpr int64_t kNumbers = std::is_same_v<Term, Pair> ? 2 : 1;
// The numbers of a matrix that is read in terms.
template <typename Term>
using Element = std::conditional_t<std::is_same_v<Term, Pair>, Half, float>;

// The distance between rows of scratch memory that hold `n` numbers. A row has room for whole tiles. The distance is
// never a multiple of 4096 bytes, because then a column of all rows would fall into one set of the cache.
template <typename Number = float>
int64_t Stride(int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(Number), kPage = 4096 / sizeof(Number);
  const int64_t stride = RoundUp(n, kColumns) + kLine;
  return stride % kPage ? stride : stride + kLine;
}

// Computes one tile: c = a b, or c += a b where `add`. c has R rows of V vectors, a has R rows of `depth` terms. b is
// packed: `depth` rows of V vectors, one right after another.
template <typename Term, int R, int V>
void Tile(const Term* a, int64_t lda, const Term* b, int64_t depth, float* c, int64_t ldc, bool add) {
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
  const Term* rows[kGroups];
  for (int g = 0; g < kGroups; g++) rows[g] = a + 3 * g * lda;
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; k++) {
    decltype(Load(b)) columns[V];
    for (int j = 0; j < V; j++) columns[j] = Load(b + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const Term left = rows[i / 3][i % 3 * lda];
      for (int j = 0; j < V; j++) MultiplyAdd(sums[i][j], left, columns[j]);
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

template <typename Term>
using TileFunction = void (*)(const Term*, int64_t, const Term*, int64_t, float*, int64_t, bool);

// Tiles at the border of a matrix are smaller, so there is a function for every size: kTiles[rows - 1][vectors - 1].
template <typename Term, int R, int... V>
constexpr std::array<TileFunction<Term>, kVectors> TilesOfRows(std::integer_sequence<int, V...>) {
  return {Tile<Term, R, V + 1>...};
}
template <typename Term, int... R>
constexpr std::array<std::array<TileFunction<Term>, kVectors>, kRows> AllTiles(std::integer_sequence<int, R...>) {
  return {TilesOfRows<Term, R + 1>(std::make_integer_sequence<int, kVectors>())...};
}
template <typename Term>
constexpr auto kTiles = AllTiles<Term>(std::make_integer_sequence<int, kRows>());

// The width in vectors of the panel (see Pack) that starts `left` columns before the last one ends.
inline int64_t PanelVectors(int64_t left) { return std::min<int64_t>(kVectors, Count(left, kLanes)); }

// What Pack makes of kLanes columns, or of one: the terms of the row at `w`, for pairs with those of the row below it.
template <typename Number>
void PackTerms(const Number* w, int64_t, bool, float* out) {
  Store(out, Load(w));
}
template <typename Number>
void PackTerm(const Number* w, int64_t, bool, float* out) {
  *out = ToFloat(*w);
}
inline void PackTerms(const Half* w, int64_t ldw, bool below, Pair* out) {
  Store(out, below ? Widen(w) | Widen(w + ldw) << 16 : Widen(w));
}
inline void PackTerm(const Half* w, int64_t ldw, bool below, Pair* out) {
  *out = *w | (below ? static_cast<Pair>(w[ldw]) << 16 : 0);
}

// Copies a matrix w of `depth` rows and `columns` columns into panels of kColumns columns. Panels lie one after
// another, and so do the rows of a panel. The last panel may be narrower: as many vectors as its columns need, filled
// up with zeros. A row of pairs is two rows of w; a last row without a partner gets zeros.
template <typename Number, typename Term>
void Pack(const Number* w, int64_t ldw, int64_t depth, int64_t columns, Term* out) {
  constexpr int64_t kStep = kNumbers<Term>;
  const int64_t terms = Count(depth, kStep);
  const int64_t whole = columns / kColumns * kColumns, width = PanelVectors(columns - whole) * kLanes;
  for (int64_t k = 0; k < terms; k++, w += kStep * ldw) {
    const bool below = kStep * k + 1 < depth;
    for (int64_t row = 0; row < kStep; row++) {
      const Number* ahead = w + (kStep * kAhead + row) * ldw;
      for (int64_t j = 0; j < columns; j += 64 / sizeof(Number)) __builtin_prefetch(ahead + j);
    }
    for (int64_t j = 0; j < whole; j += kColumns) {
      for (int v = 0; v < kVectors; v++) {
        PackTerms(w + j + v * kLanes, ldw, below, out + j * terms + k * kColumns + v * kLanes);
      }
    }
    Term* last = out + whole * terms + k * width;
    for (int64_t i = 0; i < width; i++) {
      if (whole + i < columns) {
        PackTerm(w + whole + i, ldw, below, last + i);
      } else {
        last[i] = 0;
      }
    }
  }
}

// Prefetches a block of a matrix into L2 while something else is computed. Each Step() fetches a few cache lines, so
// that `steps` calls fetch the whole block.
template <typename Number>
class Ahead {
 public:
  Ahead(const Number* block, int64_t ld, int64_t rows, int64_t columns, int64_t steps)
      : block_(block), ld_(ld), columns_(columns), lines_(Count(rows * columns / kLine, steps)) {}

  void Step() {
    for (int64_t i = 0; i < lines_; i++) {
      __builtin_prefetch(block_ + at_, 0, 2);
      at_ += kLine;
      if (at_ >= columns_) {
        at_ = 0;
        block_ += ld_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(Number);
  const Number* block_;
  int64_t ld_, columns_, lines_, at_ = 0;
};

// Some rows of a matrix as Pack leaves it: from row `first` on, of panels that are `height` rows high.
template <typename Term>
struct Panels {
  const Term* packed;
  int64_t height, first = 0;

  const Term* At(int64_t column, int64_t vectors) const { return packed + column * height + first * vectors * kLanes; }
};

// Computes c = a b, or c += a b where `add`, for c (rows x columns), a (rows x depth, in terms) and b (depth x
// columns). It calls done(row, column, rows, columns) after each tile, which can work on the tile while it is in L1.
template <typename Term, typename Done>
void Multiply(const Term* a, int64_t lda, Panels<Term> b, int64_t rows, int64_t depth, int64_t columns, float* c,
              int64_t ldc, bool add, Done done) {
  for (int64_t row = 0; row < rows; row += kRowBlock) {
    const int64_t end = std::min(rows, row + kRowBlock);
    for (int64_t j = 0; j < columns; j += kColumns) {
      const int64_t vectors = PanelVectors(columns - j);
      const Term* panel = b.At(j, vectors);
      for (int64_t i = row; i < end; i += kRows) {
        const int64_t height = std::min<int64_t>(kRows, end - i);
        kTiles<Term>[height - 1][vectors - 1](a + i* lda, lda, panel, depth, c + i* ldc + j, ldc, add);
        done(i, j, height, std::min<int64_t>(kColumns, columns - j));
      }
    }
  }
}

}  // namespace multipatch
