// softmax(q k^T / sqrt(d)) v over the patches of one image tile, for a block of queries and a block of keys at a time.
//
// The softmax is computed online: a query's sums are kept relative to its largest score so far (`Row::top`), and are
// scaled when a later block of keys has a much larger one.
#pragma once

#include <cmath>
#include <limits>

#include "matmul.h"
#include "parallel.h"

namespace multipatch {

// Queries and keys of a block, whose scores stay in L1. The product of weights and values sums over a block's keys, so
// there are at most kDepth of them. Their number is a multiple of kColumns, because packed keys are panels of kColumns.
constexpr int64_t kQueries = kRowBlock, kKeys = kDepth / kColumns * kColumns;

struct Attention {
  int64_t patches, heads, width;

  int64_t keys_size() const { return RoundUp(patches, kLanes) * width; }  // packed, of one head
  int64_t values_size() const { return patches * RoundUp(width, kLanes); }
  int64_t worker_size() const { return keys_size() + values_size() + kQueries * (Stride(kKeys) + Stride(width)); }

  // q, k, v and out are (patches, heads * width), with rows `ld` and for out `ld_out` numbers apart. `scratch` has
  // worker_size() numbers for each worker.
  void Run(const float* q, const float* k, const float* v, int64_t ld, float* out, int64_t ld_out, float* scratch,
           Workers& workers) const {
    // A task is one head, or with many threads a part of a head's queries. Each part packs the keys and values of the
    // head again.
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
  // Packs the keys of one head: the result is that of Pack for k^T.
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

  // One block of queries against all keys of a head.
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

  // The state of one query after the keys so far.
  struct Row {
    float top;  // the exponent that is subtracted from those of all weights
    Vec total;  // the sum of the weights, not yet added up over the lanes
  };

  // Replaces the scores of one query by weights 2^(score log2(e) / sqrt(d) - top) and adds them to row.total. `first`
  // tells the first block of keys. `sums` are the weighted values so far; they are scaled when row.top is raised.
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
    } else if (top > row.top + 8) {  // with less, weights are at most 2^8, and scaling is not worth it
      const float factor = std::exp2(row.top - top);
      for (int64_t d = 0; d < width; d++) sums[d] *= factor;
      row = {top, row.total * factor};
    }
    // Exp2 needs exponents of at least -126. NaN scores stay NaN: Max returns its second argument for them.
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
