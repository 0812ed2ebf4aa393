// softmax(q k^T / sqrt(d)) v over the patches of one image tile, for a block of queries and a block of keys at a time.
//
// The softmax is computed online: a query's sums are kept relative to its largest score so far (`Row::top`), and are
// scaled when a later block of keys has a much larger one. With pairs, queries, keys, values and weights are bfloat16;
// scores, sums and the softmax are float32.
#pragma once

#include <cmath>
#include <limits>

#include "matmul.h"
#include "parallel.h"

namespace multipatch {

// Queries and keys of a block, whose scores stay in L1. The product of weights and values sums over a block's keys, so
// there are at most kDepth of them. Their number is a multiple of kColumns, because packed keys are panels of kColumns.
constexpr int64_t kQueries = kRowBlock, kKeys = kDepth / kColumns * kColumns;

template <typename Term>
struct Attention {
  using Number = Element<Term>;
  static constexpr int64_t kPer = kNumbers<Term>;

  int64_t patches, heads, width;  // the width of a head is even where terms are pairs
  // Causal attention: query i sees the first `before` + i + 1 keys. Otherwise each query sees all keys.
  bool causal = false;
  int64_t before = 0;

  int64_t depth() const { return width / kPer; }                            // of a score, in terms
  int64_t keys_size() const { return RoundUp(patches, kLanes) * depth(); }  // packed, of one head, in terms
  int64_t values_size() const { return Count(patches, kPer) * RoundUp(width, kLanes); }
  // In float32 numbers, which are as large as terms. Weights of float32 take the place of their scores.
  int64_t weights_size() const { return kPer == 1 ? 0 : kQueries * Stride<Number>(kKeys) / kPer; }
  int64_t worker_size() const {
    return keys_size() + values_size() + kQueries * (Stride(kKeys) + Stride(width)) + weights_size();
  }

  // q, k, v and out are (patches, heads * width), with rows `ld` and for out `ld_out` numbers apart. `scratch` has
  // worker_size() numbers for each worker.
  void Run(const Number* q, const Number* k, const Number* v, int64_t ld, Number* out, int64_t ld_out, float* scratch,
           Workers& workers) const {
    // A task is one head, or with many threads a part of a head's queries. Each part packs the keys and values of the
    // head again.
    const int64_t blocks = Count(patches, kQueries), parts = std::min(Count(4 * workers.count(), heads), blocks);
    workers.Run(heads * parts, [&](int64_t task, int64_t worker) {
      const int64_t column = task / parts * width, part = task % parts;
      Term *keys = reinterpret_cast<Term*>(scratch + worker * worker_size()), *values = keys + keys_size();
      PackKeys(reinterpret_cast<const Term*>(k + column), ld / kPer, keys);
      for (int64_t row = 0; row < patches; row += kKeys) {
        Pack(v + row * ld + column, ld, std::min(kKeys, patches - row), width,
             values + row / kPer * RoundUp(width, kLanes));
      }
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
        const int64_t row = block * kQueries;
        Block(q + row * ld + column, ld, std::min(kQueries, patches - row), keys, values, out + row * ld_out + column,
              ld_out, reinterpret_cast<float*>(values + values_size()), row);
      }
    });
  }

  // Packs the keys and values of one head of a cache, (width, capacity) and (capacity, width).
  template <typename Cache>
  void PackCache(const Cache* k, const Cache* v, int64_t capacity, Term* keys, Term* values) const {
    Pack(k, capacity, width, patches, keys);
    for (int64_t row = 0; row < patches; row += kKeys) {
      Pack(v + row * width, width, std::min(kKeys, patches - row), width, values + row / kPer * RoundUp(width, kLanes));
    }
  }

  // One block of queries, the first of which is query `first`, against the keys of a head that they see.
  void Block(const Number* q, int64_t ld, int64_t queries, const Term* keys, const Term* values, Number* out,
             int64_t ld_out, float* scratch, int64_t first) const {
    const int64_t ld_scores = Stride(kKeys), ld_sums = Stride(width), ld_weights = Stride<Number>(kKeys);
    float *scores = scratch, *sums = scratch + kQueries * ld_scores;
    Number* weights = reinterpret_cast<Number*>(kPer == 1 ? scores : sums + kQueries * ld_sums);
    Row rows[kQueries];
    const auto nothing = [](int64_t, int64_t, int64_t, int64_t) {};
    const int64_t end = causal ? std::min(patches, before + first + queries) : patches;
    for (int64_t key = 0; key < end; key += kKeys) {
      const int64_t packed = std::min(kKeys, patches - key), count = std::min(packed, RoundUp(end - key, kColumns));
      Multiply(reinterpret_cast<const Term*>(q), ld / kPer, Panels<Term>{keys + key * depth(), depth()}, queries,
               depth(), count, scores, ld_scores, false, nothing);
      for (int64_t i = 0; i < queries; i++) {
        const int64_t seen = causal ? std::min(count, before + first + i + 1 - key) : count;
        Weigh(scores + i * ld_scores, seen, count, rows[i], sums + i * ld_sums, !key, weights + i * ld_weights);
      }
      const Panels<Term> panels{values + key / kPer * RoundUp(width, kLanes), Count(packed, kPer)};
      Multiply(reinterpret_cast<const Term*>(weights), ld_weights / kPer, panels, queries, Count(count, kPer), width,
               sums, ld_sums, key > 0, nothing);
    }
    for (int64_t i = 0; i < queries; i++) {
      const float inverse = 1.0f / Sum(rows[i].total);
      // Whole vectors, and what is left of the head's width: the next head's numbers follow.
      const int64_t whole = width / kLanes * kLanes;
      for (int64_t d = 0; d < whole; d += kLanes) Store(out + i * ld_out + d, Load(sums + i * ld_sums + d) * inverse);
      Number rest[kLanes];
      Store(rest, Load(sums + i * ld_sums + whole) * inverse);
      for (int64_t d = whole; d < width; d++) out[i * ld_out + d] = rest[d - whole];
    }
  }

 private:
  // Packs the keys of one head: the result is that of Pack for k^T.
  void PackKeys(const Term* k, int64_t ld, Term* out) const {
    for (int64_t j = 0; j < patches; j += kColumns) {
      const int64_t columns = PanelVectors(patches - j) * kLanes;
      for (int64_t i = 0; i < columns; i++) {
        const Term* from = k + (j + i) * ld;
        for (int64_t d = 0; d < depth(); d += 16) __builtin_prefetch(from + kAhead * ld + d);
        for (int64_t d = 0; d < depth(); d++) out[d * columns + i] = j + i < patches ? from[d] : 0;
      }
      out += columns * depth();
    }
  }

  // The state of one query after the keys so far.
  struct Row {
    float top;  // the exponent that is subtracted from those of all weights
    Vec total;  // the sum of the weights, not yet added up over the lanes
  };

  // Turns the scores of one query into weights 2^(score log2(e) / sqrt(d) - top) and adds them to row.total. Only the
  // first `seen` of `count` keys are seen; the others get no weight. `first` tells the first block of keys. `sums` are
  // the weighted values so far; they are scaled when row.top is raised.
  void Weigh(float* scores, int64_t seen, int64_t count, Row& row, float* sums, bool first, Number* out) const {
    const float scale = 1.4426950409f / std::sqrt(static_cast<float>(width));
    const int64_t padded = RoundUp(count, kColumns);
    if (seen <= 0) {
      for (int64_t i = 0; i < padded; i += kLanes) Store(out + i, Vec{});
      return;
    }
    for (int64_t i = seen; i < padded; i++) scores[i] = -std::numeric_limits<float>::infinity();
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
      Store(out + i, weights);
      total += weights;
    }
    row.total += total;
  }
};

}  // namespace multipatch
