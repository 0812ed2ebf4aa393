// What the two calls of the text decoder share: shapes, packed weights, and small functions of one row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "matmul.h"
#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace multipatch {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

// x / sqrt(mean of squares + epsilon) * scale, for one row. Whole vectors of `out` are written.
template <typename Number>
void RmsNorm(const float* x, const float* scale, int64_t width, float epsilon, Number* out) {
  Vec sums = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) sums += Load(x + i) * Load(x + i);
  float squares = Sum(sums);
  for (; i < width; i++) squares += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(squares / width + epsilon);
  for (i = 0; i + kLanes <= width; i += kLanes) Store(out + i, Load(x + i) * inverse * Load(scale + i));
  if (i == width) return;
  Vec rest = {};
  for (int64_t j = i; j < width; j++) rest[j - i] = x[j] * inverse * scale[j];
  Store(out + i, rest);
}

// gate * sigmoid(gate) * up
inline Vec SwiGlu(Vec gate, Vec up) {
  const Vec exponent = gate * -1.4426950409f;
  return gate / (1.0f + Exp2(Min(Max(exponent, Vec{} - 126.0f), Vec{} + 126.0f))) * up;
}

// Rotates the pairs of channels (i, i + width / 2) of each head.
inline void Rotate(float* x, int64_t heads, int64_t width, const float* cos, const float* sin) {
  const int64_t half = width / 2;
  for (int64_t h = 0; h < heads; h++, x += width) {
    for (int64_t i = 0; i < half; i++) {
      const float first = x[i], second = x[i + half];
      x[i] = first * cos[i] - second * sin[i];
      x[i + half] = second * cos[i] + first * sin[i];
    }
  }
}

// Packed weights of all layers, one after another.
template <typename Term>
struct Weights {
  const Term *qkv, *out, *gate_up, *down, *head;  // gate_up has panels of both by turns
  const float *norm1, *norm2, *norm;
};

struct Shape {
  int64_t rows, width, hidden, vocabulary, layers, heads, kv_heads, head_width, capacity;
  float epsilon;

  int64_t queries() const { return heads * head_width; }
  int64_t keys() const { return kv_heads * head_width; }
  int64_t qkv() const { return queries() + 2 * keys(); }
};

template <typename T>
T* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

// The keys or values of all layers, (layers, rows, key heads, ...), of which a layer's part, and in it a row's, is
// found.
template <typename Cache>
struct Cached {
  Cache *keys, *values;
  int64_t row_size, rows;

  Cache* Keys(int64_t layer, int64_t row = 0) const { return keys + (layer * rows + row) * row_size; }
  Cache* Values(int64_t layer, int64_t row = 0) const { return values + (layer * rows + row) * row_size; }
};

// What a call of XLA asks for.
template <typename Weight, typename Cache>
struct Call {
  ffi::ThreadPool& pool;
  const float* x;         // (rows, width)
  const int32_t* places;  // the rows' positions; or a chunk's row, first position, and which of its tokens is the last
  const float *cos, *sin;
  Shape shape;
  Weights<Weight> weights;
  Cached<Cache> cache;
  float* logits;
};

// Handles a call with the arguments of DecoderBinding.
template <typename Weight, typename Cache, ffi::Error (*run)(const Call<Weight, Cache>&)>
ffi::Error Handle(ffi::ThreadPool pool, Array x, Ints places, Array cos, Array sin, ffi::AnyBuffer qkv,
                  ffi::AnyBuffer out, ffi::AnyBuffer gate_up, ffi::AnyBuffer down, ffi::AnyBuffer head, Array norm1,
                  Array norm2, Array norm, ffi::AnyBuffer, ffi::AnyBuffer, ffi::Result<Array> logits,
                  ffi::Result<ffi::AnyBuffer> keys, ffi::Result<ffi::AnyBuffer> values, int64_t heads, int64_t kv_heads,
                  int64_t hidden, int64_t capacity, float epsilon) {
  const Shape shape{x.dimensions()[0],
                    x.dimensions()[1],
                    hidden,
                    logits->dimensions().back(),
                    norm1.dimensions()[0],
                    heads,
                    kv_heads,
                    2 * static_cast<int64_t>(cos.dimensions()[1]),
                    capacity,
                    epsilon};
  const Weights<Weight> weights{Data<Weight>(qkv),  Data<Weight>(out),  Data<Weight>(gate_up), Data<Weight>(down),
                                Data<Weight>(head), norm1.typed_data(), norm2.typed_data(),    norm.typed_data()};
  const Cached<Cache> cache{Data<Cache>(*keys), Data<Cache>(*values), shape.keys() * capacity, keys->dimensions()[1]};
  return run({pool, x.typed_data(), places.typed_data(), cos.typed_data(), sin.typed_data(), shape, weights, cache,
              logits->typed_data()});
}

inline auto DecoderBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()           // x (rows, width)
      .Arg<Ints>()            // positions (rows), or the place of a chunk (3)
      .Arg<Array>()           // cos (rows, head width / 2)
      .Arg<Array>()           // sin
      .Arg<ffi::AnyBuffer>()  // packed weights of all layers: qkv,
      .Arg<ffi::AnyBuffer>()  // out,
      .Arg<ffi::AnyBuffer>()  // gate and up,
      .Arg<ffi::AnyBuffer>()  // down;
      .Arg<ffi::AnyBuffer>()  // of the head
      .Arg<Array>()           // norms (layers, width)
      .Arg<Array>()
      .Arg<Array>()           // the last norm (width)
      .Arg<ffi::AnyBuffer>()  // keys of the cache (layers, rows, key heads, head width, capacity)
      .Arg<ffi::AnyBuffer>()  // values (layers, rows, key heads, capacity, head width)
      .Ret<Array>()           // logits (rows, vocabulary)
      .Ret<ffi::AnyBuffer>()  // the same memory as the arguments: keys,
      .Ret<ffi::AnyBuffer>()  // values
      .Attr<int64_t>("heads")
      .Attr<int64_t>("kv_heads")
      .Attr<int64_t>("hidden")
      .Attr<int64_t>("capacity")
      .Attr<float>("epsilon");
}

}  // namespace multipatch
