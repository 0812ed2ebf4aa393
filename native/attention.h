// softmax(q k^T / sqrt(d)) v of one tile's patches, a block of queries and a block of keys at a time.
#pragma once

#include <cmath>
#include <limits>

#include "matmul.h"
#include "parallel.h"

namespace multipatch {

// Queries and keys of a block, whose scores stay in L1: weights are multiplied by the values of one block of keys at a
// time, so it has no more than kDepth of them, and it is whole tiles, as packed keys are.
constexpr int64_t kQueries = kRowBlock, kKeys = kDepth / kColumns * kColumns;

struct Attention {
  int64_t patches, heads, width;

  int64_t keys_size() const { return RoundUp(patches, kLanes) * width; }  // of a head, packed
  int64_t values_size() const { return patches * RoundUp(width, kLanes); }
  int64_t worker_size() const { return keys_size() + values_size() + kQueries * (Stride(kKeys) + Stride(width)); }

  // q, k, v and out: (patches, heads * width) with rows `ld` apart, and `ld_out`. scratch: worker_size() numbers of
  // each worker.
  void Run(const float* q, const float* k, const float* v, int64_t ld, float* out, int64_t ld_out, float* scratch,
           Workers& workers) const {
    // With many threads queries are shared out too, at the price of packing a head's keys and values more than once.
    const int64_t blocks = Count(patches, kQueries), parts = std::min(Count(4 * workers.count(), heads), blocks);
    workers.Run(heads * parts, [&](int64_t task, int64_t worker) {
      const int64_t column = task / parts * width, part = task % parts;
      float *keys = scratch + worker * worker_size(), *values = keys + keys_size();
      PackKeys(k + column, ld, keys);
      for (int64_t row = 0; row < patches; row += kKeys) {
        Pack(v + row * ld + column, ld, std::min(kKeys, patches - row), width, values + row * RoundUp(width, kLanes));
      }
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
        const int64_t row = block * kQueries;
        Block(q + row * ld + column, ld, std::min(kQueries, patches - row), keys, values, out + row * ld_out + column,
              ld_out, values + values_size());
      }
    });
  }

 private:
  // k^T as Pack would leave it.
  void PackKeys(const float* k, int64_t ld, float* out) const {
    for (int64_t j = 0; j < patches; j += kColumns) {
      const int64_t columns = PanelVectors(patches - j) * kLanes;
      for (int64_t i = 0; i < columns; i++) {
        const float* from = k + (j + i) * ld;
        for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(from + kAhead * ld + d);
        for (int64_t d = 0; d < width; d++) out[d * columns + i] = j + i < patches ? from[d] : 0.0f;
      }
      out += columns * width;
    }
  }

  void Block(const float* q, int64_t ld, int64_t queries, const float* keys, const float* values, float* out,
             int64_t ld_out, float* scratch) const {
    const int64_t ld_scores = Stride(kKeys), ld_sums = Stride(width);
    float *scores = scratch, *sums = scratch + kQueries * ld_scores;
    Row rows[kQueries];
    const auto nothing = [](int64_t, int64_t, int64_t, int64_t) {};
    for (int64_t key = 0; key < patches; key += kKeys) {
      const int64_t count = std::min(kKeys, patches - key);
      Multiply(q, ld, keys + key * width, queries, width, count, scores, ld_scores, false, nothing);
      for (int64_t i = 0; i < queries; i++) Weigh(scores + i * ld_scores, count, rows[i], sums + i * ld_sums, !key);
      Multiply(scores, ld_scores, values + key * RoundUp(width, kLanes), queries, count, width, sums, ld_sums, key > 0,
               nothing);
    }
    for (int64_t i = 0; i < queries; i++) {
      const float inverse = 1.0f / Sum(rows[i].total);
      for (int64_t d = 0; d < width; d++) out[i * ld_out + d] = sums[i * ld_sums + d] * inverse;
    }
  }

  // Of one query over the keys so far: the exponent that weights are relative to, and their sum.
  struct Row {
    float top;
    Vec total;
  };

  // Scores of one query to weights 2^(score log2(e) / sqrt(d) - top), in place.
  void Weigh(float* scores, int64_t count, Row& row, float* sums, bool first) const {
    const float scale = 1.4426950409f / std::sqrt(static_cast<float>(width));
    const int64_t padded = RoundUp(count, kColumns);
    for (int64_t i = count; i < padded; i++) scores[i] = -std::numeric_limits<float>::infinity();
    Vec largest[kVectors];
    for (int v = 0; v < kVectors; v++) largest[v] = Load(scores + v * kLanes);
    for (int64_t i = kColumns; i < padded; i += kColumns) {
      for (int v = 0; v < kVectors; v++) largest[v] = Max(largest[v], Load(scores + i + v * kLanes));
    }
    for (int v = 1; v < kVectors; v++) largest[0] = Max(largest[0], largest[v]);
    const float top = Max(largest[0]) * scale;
    if (first) {
      row = {top, Vec{}};
    } else if (top > row.top + 8) {  // less does not overflow, and is not worth the work
      const float factor = std::exp2(row.top - top);
      for (int64_t d = 0; d < width; d++) sums[d] *= factor;
      row = {top, row.total * factor};
    }
    const Vec least = Vec{} + (row.top - 126.0f) / scale;
    Vec total = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec weights = Exp2(Max(least, Load(scores + i)) * scale - row.top);
      Store(scores + i, weights);
      total += weights;
    }
    row.total += total;
  }
};

}  // namespace multipatch
