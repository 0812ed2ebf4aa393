// softmax(q k^T / sqrt(d)) v of one tile's patches, a block of queries of one head at a time.
#pragma once

#include <cmath>
#include <limits>

#include "matmul.h"
#include "parallel.h"

namespace multipatch {

constexpr int64_t kQueries = 48;  // of a block, whose scores stay in L2

struct Attention {
  int64_t patches, heads, width;

  int64_t keys_size() const { return RoundUp(patches, kLanes) * width; }  // of a head, packed
  int64_t values_size() const { return patches * RoundUp(width, kLanes); }
  int64_t packed_size() const { return heads * (keys_size() + values_size()); }
  int64_t score_stride() const { return Stride(patches); }
  int64_t worker_size() const { return kQueries * (score_stride() + Stride(width)); }

  // q, k, v and out: (patches, heads * width) with rows `ld` apart, and `ld_out`. packed: packed_size() numbers;
  // scratch: worker_size() of each worker.
  void Run(const float* q, const float* k, const float* v, int64_t ld, float* out, int64_t ld_out, float* packed,
           float* scratch, Workers& workers) const {
    workers.Run(heads, [&](int64_t head, int64_t) {
      PackKeys(k + head * width, ld, packed + head * keys_size());
      float* values = packed + heads * keys_size() + head * values_size();
      for (int64_t row = 0; row < patches; row += kDepth) {
        Pack(v + head * width + row * ld, ld, std::min(kDepth, patches - row), width,
             values + row * RoundUp(width, kLanes));
      }
    });
    const int64_t blocks = Count(patches, kQueries);
    workers.Run(heads * blocks, [&](int64_t task, int64_t worker) {
      const int64_t head = task / blocks, row = task % blocks * kQueries;
      Block(q + row * ld + head * width, ld, std::min(kQueries, patches - row), packed + head * keys_size(),
            packed + heads * keys_size() + head * values_size(), out + row * ld_out + head * width, ld_out,
            scratch + worker * worker_size());
    });
  }

 private:
  // k^T as Pack would leave it.
  void PackKeys(const float* k, int64_t ld, float* out) const {
    for (int64_t j = 0; j < patches; j += kColumns) {
      const int64_t columns = PanelVectors(patches - j) * kLanes;
      for (int64_t i = 0; i < columns; i++) {
        const float* from = k + (j + i) * ld;
        for (int64_t d = 0; d < width; d++) out[d * columns + i] = j + i < patches ? from[d] : 0.0f;
      }
      out += columns * width;
    }
  }

  void Block(const float* q, int64_t ld, int64_t queries, const float* keys, const float* values, float* out,
             int64_t ld_out, float* scratch) const {
    const int64_t stride = score_stride(), ld_sums = Stride(width);
    float *scores = scratch, *sums = scratch + kQueries * stride;
    float inverse[kQueries];
    const auto nothing = [](int64_t, int64_t, int64_t, int64_t) {};
    Multiply(q, ld, keys, queries, width, patches, scores, stride, false, nothing);
    for (int64_t i = 0; i < queries; i++) inverse[i] = 1.0f / Softmax(scores + i * stride);
    for (int64_t row = 0; row < patches; row += kDepth) {
      Multiply(scores + row, stride, values + row * RoundUp(width, kLanes), queries, std::min(kDepth, patches - row),
               width, sums, ld_sums, row > 0, nothing);
    }
    for (int64_t i = 0; i < queries; i++) {
      for (int64_t d = 0; d < width; d++) out[i * ld_out + d] = sums[i * ld_sums + d] * inverse[i];
    }
  }

  // Scores of one query to e^(scale * (score - the largest)), in place; returns their sum.
  float Softmax(float* scores) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    const int64_t padded = RoundUp(patches, kLanes);
    for (int64_t i = patches; i < padded; i++) scores[i] = -std::numeric_limits<float>::infinity();
    Vec largest = Load(scores);
    for (int64_t i = kLanes; i < padded; i += kLanes) {
      const Vec x = Load(scores + i);
      largest = x > largest ? x : largest;
    }
    float top = largest[0];
    for (int i = 1; i < kLanes; i++) top = std::max(top, largest[i]);
    Vec total = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec weights = Exp((Load(scores + i) - top) * scale);
      Store(scores + i, weights);
      total += weights;
    }
    return Sum(total);
  }
};

}  // namespace multipatch
