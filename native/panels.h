// Products of a few rows with packed weights: what one token of each chat needs. Their time is that of reading the
// weights, so these lie in the order in which they are read, and the next ones are prefetched.
//
// Weights are packed once (Pack in matmul.h, with all of a matrix's rows in one panel). bfloat16 weights lie in pairs
// and become float32 as they are read. Rows and sums are float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "matmul.h"

namespace multipatch {

constexpr int64_t kFewRows = 4;  // rows that share one reading of a panel; more rows read it again, from the cache
constexpr int64_t kBytesAhead = 4096;  // how far ahead of its reading a panel is prefetched

// Terms of a packed matrix of `depth` rows and `columns` columns.
template <typename Term>
constexpr int64_t PackedSize(int64_t depth, int64_t columns) {
  return Count(depth, kNumbers<Term>) * RoundUp(columns, kLanes);
}

// Adds the products of two terms of R rows with two rows of a panel; each has sums of its own, so that no addition
// waits for the one before.
template <int R, int V>
void AddTwo(const float* x, int64_t ldx, const float* panel, Vec (&sums)[R][V][2]) {
  for (int part = 0; part < 2; part++) {
    for (int v = 0; v < V; v++) {
      const Vec weights = Load(panel + (part * V + v) * kLanes);
      for (int i = 0; i < R; i++) sums[i][v][part] += x[i * ldx + part] * weights;
    }
  }
}
template <int R, int V>
void AddTwo(const float* x, int64_t ldx, const Pair* panel, Vec (&sums)[R][V][2]) {
  for (int v = 0; v < V; v++) {
    const PairVec weights = Load(panel + v * kLanes);
    const Vec first = AsFloats(weights << 16), second = AsFloats(weights & 0xffff0000u);
    for (int i = 0; i < R; i++) {
      sums[i][v][0] += x[i * ldx] * first;
      sums[i][v][1] += x[i * ldx + 1] * second;
    }
  }
}

// out = x w for R rows and one panel of V vectors. The terms of a row are summed in blocks of 2 kDepth, in the same
// order for every R, so that a row does not depend on those beside it.
template <typename Term, int R, int V>
void PanelRows(const float* x, int64_t ldx, const Term* panel, int64_t depth, float* out, int64_t ldo) {
  constexpr int64_t kTerms = 2 / kNumbers<Term>;  // rows of the panel that two numbers of x meet
  Vec total[R][V] = {};
  for (int64_t start = 0; start < depth; start += 2 * kDepth) {
    const int64_t end = std::min(depth, start + 2 * kDepth);
    Vec sums[R][V][2] = {};
    int64_t k = start;
    for (; k + 2 <= end; k += 2, panel += kTerms * V * kLanes) {
      for (int64_t i = 0; i < kTerms * V * kLanes; i += 16) __builtin_prefetch(panel + kBytesAhead / 4 + i);
      AddTwo<R, V>(x + k, ldx, panel, sums);
    }
    if (k < end) {  // an odd number of terms: the last one has a partner of zeros
      float last[R][2];
      Term rows[2 * V * kLanes] = {};
      for (int i = 0; i < R; i++) last[i][0] = x[i * ldx + k], last[i][1] = 0;
      std::copy(panel, panel + V * kLanes, rows);
      AddTwo<R, V>(last[0], 2, rows, sums);
      panel += V * kLanes;
    }
    for (int i = 0; i < R; i++) {
      for (int v = 0; v < V; v++) total[i][v] += sums[i][v][0] + sums[i][v][1];
    }
  }
  for (int i = 0; i < R; i++) {
    for (int v = 0; v < V; v++) Store(out + i * ldo + v * kLanes, total[i][v]);
  }
}

template <typename Term>
using PanelFunction = void (*)(const float*, int64_t, const Term*, int64_t, float*, int64_t);

template <typename Term, int R, int... V>
constexpr std::array<PanelFunction<Term>, kVectors> PanelsOfRows(std::integer_sequence<int, V...>) {
  return {PanelRows<Term, R, V + 1>...};
}
template <typename Term, int... R>
constexpr std::array<std::array<PanelFunction<Term>, kVectors>, kFewRows> AllPanels(std::integer_sequence<int, R...>) {
  return {PanelsOfRows<Term, R + 1>(std::make_integer_sequence<int, kVectors>())...};
}
template <typename Term>
constexpr auto kPanels = AllPanels<Term>(std::make_integer_sequence<int, kFewRows>());

// out = x w for a few rows and the panel of packed weights that starts at `column`. Rows of `out` have room for whole
// vectors.
template <typename Term>
void Panel(const float* x, int64_t ldx, int64_t rows, const Term* packed, int64_t depth, int64_t columns,
           int64_t column, float* out, int64_t ldo) {
  const Term* panel = packed + column * Count(depth, kNumbers<Term>);
  const int64_t vectors = PanelVectors(columns - column);
  for (int64_t i = 0; i < rows; i += kFewRows) {
    const int64_t few = std::min(kFewRows, rows - i);
    kPanels<Term>[few - 1][vectors - 1](x + i* ldx, ldx, panel, depth, out + i* ldo, ldo);
  }
}

}  // namespace multipatch
