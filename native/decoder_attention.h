// Attention of one token of each row over the tokens in the cache, in chunks of columns that threads share.
//
// Keys of a row and head are (head width, capacity), values (capacity, head width), so both are read along memory. The
// query heads that share a key head share its reading. The head width is a multiple of kLanes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "matmul.h"

namespace multipatch {

template <typename Cache>
struct DecoderAttention {
  static constexpr int64_t kChunk = 256;  // columns of a task; the capacity is a multiple of it
  static constexpr int64_t kHeads = 4;    // query heads whose sums are in registers at a time
  static constexpr int64_t kBlock = 4;    // vectors of columns, or of a head's width, at a time

  int64_t heads, kv_heads, width, capacity;

  int64_t chunks() const { return Count(capacity, kChunk); }
  // What a chunk leaves of a head: its weighted values, their total weight, and the exponent that all are relative to.
  int64_t part_size() const { return width + 16; }
  int64_t parts_size() const { return heads * chunks() * part_size(); }

  // Writes the key and value of a token to its column, and returns whether it did. Numbers that are not finite are not
  // written: whoever reads the whole cache and masks it later expects finite ones.
  bool Write(const float* k, const float* v, int64_t column, int64_t row, Cache* keys, Cache* values) const {
    float sum = 0;
    for (int64_t i = 0; i < kv_heads * width; i++) sum += std::abs(k[i]) + std::abs(v[i]);
    if (!std::isfinite(sum)) return false;
    for (int64_t h = 0; h < kv_heads; h++) {
      Cache* key = keys + (row * kv_heads + h) * width * capacity + column;
      Cache* value = values + ((row * kv_heads + h) * capacity + column) * width;
      for (int64_t d = 0; d < width; d += kLanes) {
        Cache rounded[kLanes];
        Store(rounded, Load(k + h * width + d));
        for (int64_t i = 0; i < kLanes; i++) key[(d + i) * capacity] = rounded[i];
        Store(value + d, Load(v + h * width + d));
      }
    }
    return true;
  }

  // Attends from the queries of one key head to the columns of a chunk before `length`.
  void Chunk(const float* q, const Cache* keys, const Cache* values, int64_t row, int64_t kv_head, int64_t chunk,
             int64_t length, float* parts) const {
    const int64_t group = heads / kv_heads, start = chunk * kChunk, count = std::min(kChunk, length - start);
    if (count <= 0) return;
    const Cache* key = keys + (row * kv_heads + kv_head) * width * capacity + start;
    const Cache* value = values + ((row * kv_heads + kv_head) * capacity + start) * width;
    // The keys that most likely come next: those of the next chunk, or of the next head.
    const Cache* next = start + kChunk < length ? key + kChunk : key - start + width * capacity;
    for (int64_t h = 0; h < group; h += kHeads) {
      const int64_t first = kv_head * group + h, some = std::min(kHeads, group - h);
      float* part = parts + (first * chunks() + chunk) * part_size();
      const float* query = q + first * width;
      if (some == 1) Heads<1>(query, key, value, count, next, part);
      if (some == 2) Heads<2>(query, key, value, count, next, part);
      if (some == 3) Heads<3>(query, key, value, count, next, part);
      if (some == 4) Heads<4>(query, key, value, count, next, part);
    }
  }

  // Joins the chunks of all heads: out is (heads, width).
  void Join(const float* parts, int64_t length, float* out) const {
    const int64_t used = Count(length, kChunk);
    for (int64_t h = 0; h < heads; h++, parts += chunks() * part_size(), out += width) {
      float top = -std::numeric_limits<float>::infinity(), total = 0;
      for (int64_t c = 0; c < used; c++) top = std::max(top, parts[c * part_size() + width + 1]);
      std::fill(out, out + width, 0.0f);
      for (int64_t c = 0; c < used; c++) {
        const float* part = parts + c * part_size();
        const float factor = std::exp2(part[width + 1] - top);
        total += part[width] * factor;
        for (int64_t d = 0; d < width; d++) out[d] += part[d] * factor;
      }
      for (int64_t d = 0; d < width; d++) out[d] /= total;
    }
  }

 private:
  // Prefetches one row of a block of keys. The rows of a block lie far apart, so the processor does not see them
  // coming.
  static void FetchColumns(const Cache* keys) {
    for (int64_t i = 0; i < kBlock * kLanes; i += 64 / sizeof(Cache)) __builtin_prefetch(keys + i);
  }

  template <int H>
  void Heads(const float* q, const Cache* keys, const Cache* values, int64_t count, const Cache* next,
             float* part) const {
    const float scale = 1.4426950409f / std::sqrt(static_cast<float>(width));
    const int64_t padded = RoundUp(count, kLanes);
    float weights[H][kChunk];
    for (int64_t d = 0; d < width; d++) {
      for (int64_t i = 0; i < count; i += 64 / sizeof(Cache)) __builtin_prefetch(keys + d * capacity + i, 0, 2);
    }
    Ahead<Cache> ahead(values, width, count, width, width * Count(padded, kBlock * kLanes));
    for (int64_t c = 0; c < padded; c += kBlock * kLanes) {
      Scores<H>(q, keys + c, std::min(kBlock, (padded - c) / kLanes), weights, c, ahead);
    }
    for (int h = 0; h < H; h++) {
      for (int64_t c = count; c < padded; c++) weights[h][c] = -std::numeric_limits<float>::infinity();
      Vec most = Load(weights[h]);
      for (int64_t c = kLanes; c < padded; c += kLanes) most = Max(most, Load(weights[h] + c));
      const float top = Max(most) * scale;
      const Vec least = Vec{} + (top - 126.0f) / scale;
      Vec total = {};
      for (int64_t c = 0; c < padded; c += kLanes) {
        const Vec weight = Exp2(Max(least, Load(weights[h] + c)) * scale - top);
        Store(weights[h] + c, weight);
        total += weight;
      }
      for (int64_t c = count; c < padded; c++) total[c % kLanes] -= weights[h][c];
      float* of_head = part + h * chunks() * part_size();
      of_head[width] = Sum(total);
      of_head[width + 1] = top;
    }
    Ahead<Cache> ahead_keys(next, capacity, width, kChunk, count * Count(width, kBlock * kLanes));
    for (int64_t d = 0; d < width; d += kBlock * kLanes) {
      Values<H>(values + d, std::min(kBlock, (width - d) / kLanes), weights, count, part + d, ahead_keys);
    }
  }

  // The products of H queries with some columns of keys.
  template <int H>
  void Scores(const float* q, const Cache* keys, int64_t vectors, float (*out)[kChunk], int64_t column,
              Ahead<Cache>& ahead) const {
    Vec sums[H][kBlock] = {};
    for (int64_t d = 0; d < width; d++, keys += capacity) {
      ahead.Step();
      for (int v = 0; v < kBlock; v++) {
        if (v >= vectors) break;
        const Vec some = Load(keys + v * kLanes);
        for (int h = 0; h < H; h++) sums[h][v] += q[h * width + d] * some;
      }
    }
    for (int h = 0; h < H; h++) {
      for (int v = 0; v < vectors; v++) Store(out[h] + column + v * kLanes, sums[h][v]);
    }
  }

  // The sums of values, weighted for H heads, over some vectors of a head's width.
  template <int H>
  void Values(const Cache* values, int64_t vectors, const float (*weights)[kChunk], int64_t count, float* part,
              Ahead<Cache>& ahead) const {
    Vec sums[H][kBlock] = {};
    for (int64_t c = 0; c < count; c++, values += width) {
      ahead.Step();
      for (int v = 0; v < kBlock; v++) {
        if (v >= vectors) break;
        const Vec some = Load(values + v * kLanes);
        for (int h = 0; h < H; h++) sums[h][v] += weights[h][c] * some;
      }
    }
    for (int h = 0; h < H; h++) {
      for (int v = 0; v < vectors; v++) Store(part + h * chunks() * part_size() + v * kLanes, sums[h][v]);
    }
  }
};

}  // namespace multipatch
