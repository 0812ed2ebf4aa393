// A chunk of a prompt through the text decoder as one custom call of XLA on a CPU: all layers, the cache of one row,
// and the logits of the last token. It reads the weights that decoder.cc packs; its products are tiles (matmul.h), as
// those of the encoder are.
//
// Products are of float32 numbers or, where the CPU is fast at that, of pairs of bfloat16 numbers. Where weights are
// pairs and products are not, a block of weights becomes float32 before it is multiplied.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "decoder.h"
#include "decoder_attention.h"
#include "matmul.h"
#include "memory.h"
#include "panels.h"
#include "parallel.h"
#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace multipatch {
namespace {

constexpr int64_t kColumnBlock = 6 * kColumns, kTokens = 5 * kRowBlock;  // columns and tokens of a task
constexpr int64_t kTurned = 32;  // tokens of a task that writes to the cache: their keys fill whole lines of it

// Some rows of packed weights as the terms of a product: as they lie, or pairs as float32, which are written to
// `unpacked`.
inline Panels<float> AsTerms(Panels<float> panels, int64_t, int64_t, float*) { return panels; }
inline Panels<Pair> AsTerms(Panels<Pair> panels, int64_t, int64_t, Pair*) { return panels; }
inline Panels<float> AsTerms(Panels<Pair> panels, int64_t numbers, int64_t columns, float* unpacked) {
  const int64_t rows = Count(numbers, 2);
  for (int64_t j = 0; j < columns; j += kColumns) {
    const int64_t vectors = PanelVectors(columns - j), width = vectors * kLanes;
    const Pair* from = panels.At(j, vectors);
    float* to = unpacked + j * 2 * rows;
    for (int64_t k = 0; k < rows; k++) {
      for (int64_t i = 0; i < width; i += kLanes) {
        const PairVec pairs = Load(from + k * width + i);
        Store(to + 2 * k * width + i, AsFloats(pairs << 16));
        Store(to + (2 * k + 1) * width + i, AsFloats(pairs & 0xffff0000u));
      }
    }
  }
  return {unpacked, 2 * rows};
}

template <typename Term, typename Weight, typename Cache>
class Prefill {
 public:
  using Number = Element<Term>;

  Prefill(const Shape& shape, const Weights<Weight>& weights, int64_t tokens, int64_t start, Workers& workers)
      : s_(shape),
        w_(weights),
        tokens_(tokens),
        start_(start),
        workers_(workers),
        attention_{start + tokens, shape.heads, shape.head_width, true, start},
        memory_(Size()) {
    float* scratch = memory_.get();
    if (!scratch) return;
    x_ = scratch + at_[0], qkv_ = scratch + at_[1], per_worker_ = scratch + at_[6];
    const auto numbers = [&](int i) { return reinterpret_cast<Number*>(scratch + at_[i]); };
    normed_ = numbers(2), queries_ = numbers(3), mixed_ = numbers(4), mlp_ = numbers(5);
  }

  bool has_memory() { return memory_.get(); }

  // Writes to a row of the cache, and the logits of the last token.
  void Run(const float* x, const float* cos, const float* sin, const Cached<Cache>& cache, int64_t row, float* logits) {
    std::copy(x, x + tokens_ * s_.width, x_);
    const auto add = [&](int64_t i, int64_t column, int64_t columns, const float* sums) {
      for (int64_t j = 0; j < columns; j++) x_[i * s_.width + column + j] += sums[j];
    };
    for (int64_t n = 0; n < s_.layers; n++) {
      Normalise(w_.norm1 + n * s_.width);
      Product(normed_, Ld(s_.width), w_.qkv + n * PackedSize<Weight>(s_.width, s_.qkv()), s_.width, s_.qkv(),
              [&](int64_t i, int64_t column, int64_t columns, const float* sums) {
                std::copy(sums, sums + columns, qkv_ + i * s_.qkv() + column);
              });
      Cache *keys = cache.Keys(n, row), *values = cache.Values(n, row);
      Turn(cos, sin, keys, values);
      Attend(keys, values);
      Product(mixed_, Ld(s_.queries()), w_.out + n * PackedSize<Weight>(s_.queries(), s_.width), s_.queries(), s_.width,
              add);
      Normalise(w_.norm2 + n * s_.width);
      const int64_t wide = RoundUp(s_.hidden, kColumns);
      Product(normed_, Ld(s_.width), w_.gate_up + n * PackedSize<Weight>(s_.width, 2 * wide), s_.width, 2 * wide,
              [&](int64_t token, int64_t column, int64_t columns, const float* sums) {
                for (int64_t j = 0; j < columns; j += 2 * kColumns) {  // a block has as many panels of gate as of up
                  for (int64_t i = 0; i < kColumns; i += kLanes) {
                    Store(mlp_ + token * Ld(s_.hidden) + (column + j) / 2 + i,
                          SwiGlu(Load(sums + j + i), Load(sums + j + kColumns + i)));
                  }
                }
              });
      Product(mlp_, Ld(s_.hidden), w_.down + n * PackedSize<Weight>(s_.hidden, s_.width), s_.hidden, s_.width, add);
    }
    const int64_t last = tokens_ - 1;
    if (last >= broken_) x_[last * s_.width] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> normed(RoundUp(s_.width, kLanes));
    RmsNorm(x_ + last * s_.width, w_.norm, s_.width, s_.epsilon, normed.data());
    workers_.Run(Count(s_.vocabulary, kColumns), [&](int64_t task, int64_t) {
      const int64_t column = task * kColumns;
      float sums[kColumns];
      Panel(normed.data(), s_.width, 1, w_.head, s_.width, s_.vocabulary, column, sums, kColumns);
      std::copy(sums, sums + std::min<int64_t>(kColumns, s_.vocabulary - column), logits + column);
    });
  }

 private:
  static constexpr int64_t kBlock = kDepth * kNumbers<Term>;  // numbers of the input that one accumulator sums

  static int64_t Ld(int64_t numbers) { return Stride<Number>(numbers); }

  // Lays out the scratch memory, in float32 numbers.
  int64_t Size() {
    int64_t size = 0;
    const auto reserve = [&size](int64_t numbers) {
      const int64_t at = size;
      size += RoundUp(numbers, 16);
      return at;
    };
    const auto of_terms = [&](int64_t numbers) { return reserve(tokens_ * Ld(numbers) / kNumbers<Term>); };
    at_[0] = reserve(tokens_ * s_.width);
    at_[1] = reserve(tokens_ * s_.qkv());
    at_[2] = of_terms(s_.width);
    at_[3] = of_terms(s_.queries());
    at_[4] = of_terms(s_.queries());
    at_[5] = of_terms(s_.hidden);
    at_[6] = reserve(workers_.count() * WorkerSize());
    return size;
  }
  int64_t WorkerSize() const {
    const int64_t product = kBlock * kColumnBlock + kTokens * Stride(kColumnBlock);
    return RoundUp(std::max(product, attention_.worker_size()), 16);
  }

  void Normalise(const float* scale) {
    workers_.Run(tokens_, [&](int64_t i, int64_t) {
      RmsNorm(x_ + i * s_.width, scale, s_.width, s_.epsilon, normed_ + i * Ld(s_.width));
    });
  }

  // Rotates queries and keys, and writes keys and values to the cache.
  void Turn(const float* cos, const float* sin, Cache* keys, Cache* values) {
    const DecoderAttention<Cache> cache{s_.heads, s_.kv_heads, s_.head_width, s_.capacity};
    const int64_t half = s_.head_width / 2;
    workers_.Run(Count(tokens_, kTurned), [&](int64_t task, int64_t) {
      for (int64_t i = task * kTurned; i < std::min(tokens_, (task + 1) * kTurned); i++) {
        float *q = qkv_ + i * s_.qkv(), *k = q + s_.queries();
        Rotate(q, s_.heads + s_.kv_heads, s_.head_width, cos + i * half, sin + i * half);
        for (int64_t j = 0; j < s_.queries(); j += kLanes) Store(queries_ + i * Ld(s_.queries()) + j, Load(q + j));
        if (cache.Write(k, k + s_.keys(), start_ + i, 0, keys, values)) continue;
        for (int64_t first = broken_; i < first && !broken_.compare_exchange_weak(first, i);) {
        }
      }
    });
  }

  // Calls done(row, column, columns, sums) for each row of each block of columns of x w.
  template <typename Done>
  void Product(const Number* x, int64_t ldx, const Weight* packed, int64_t depth, int64_t columns, Done done) {
    // A task is a block of columns for some of the tokens. Its sums stay in L2.
    const int64_t terms = Count(depth, kNumbers<Weight>), ld = Stride(kColumnBlock), parts = Count(tokens_, kTokens);
    workers_.Run(parts * Count(columns, kColumnBlock), [&](int64_t task, int64_t worker) {
      const int64_t first = task / parts * kColumnBlock, width = std::min(kColumnBlock, columns - first);
      const int64_t row = task % parts * kTokens, rows = std::min(kTokens, tokens_ - row);
      Term* unpacked = reinterpret_cast<Term*>(per_worker_ + worker * WorkerSize());
      float* sums = reinterpret_cast<float*>(unpacked + kBlock * kColumnBlock);
      for (int64_t k = 0; k < depth; k += kBlock) {
        const int64_t numbers = std::min(kBlock, depth - k);
        const Panels<Weight> block{packed + first * terms, terms, k / kNumbers<Weight>};
        Multiply(reinterpret_cast<const Term*>(x + row * ldx + k), ldx / kNumbers<Term>,
                 AsTerms(block, numbers, width, unpacked), rows, Count(numbers, kNumbers<Term>), width, sums, ld, k > 0,
                 [](int64_t, int64_t, int64_t, int64_t) {});
      }
      for (int64_t i = 0; i < rows; i++) done(row + i, first, width, sums + i * ld);
    });
  }

  void Attend(const Cache* keys, const Cache* values) {
    // A task is a key head for some blocks of queries. They are spread over the tokens, as later ones see more keys.
    const int64_t blocks = Count(tokens_, kQueries), count = workers_.count();
    const int64_t parts = std::min(RoundUp(Count(4 * count, s_.kv_heads), count), blocks);
    const int64_t group = s_.heads / s_.kv_heads, head_size = s_.capacity * s_.head_width, ld = Ld(s_.queries());
    workers_.Run(s_.kv_heads * parts, [&](int64_t task, int64_t worker) {
      const int64_t head = task / parts;
      Term* packed = reinterpret_cast<Term*>(per_worker_ + worker * WorkerSize());
      Term* packed_values = packed + attention_.keys_size();
      attention_.PackCache(keys + head * head_size, values + head * head_size, s_.capacity, packed, packed_values);
      for (int64_t block = task % parts; block < blocks; block += parts) {
        const int64_t row = block * kQueries;
        for (int64_t h = head * group; h < (head + 1) * group; h++) {
          const int64_t at = row * ld + h * s_.head_width;
          attention_.Block(queries_ + at, ld, std::min(kQueries, tokens_ - row), packed, packed_values, mixed_ + at, ld,
                           reinterpret_cast<float*>(packed_values + attention_.values_size()), row);
        }
      }
    });
  }

  const Shape& s_;
  const Weights<Weight>& w_;
  int64_t tokens_, start_;
  std::atomic<int64_t> broken_{tokens_};  // the first token whose key or value is not finite; later ones would see it
  Workers& workers_;
  Attention<Term> attention_;
  int64_t at_[7];
  Memory memory_;
  float *x_, *qkv_, *per_worker_;
  Number *normed_, *queries_, *mixed_, *mlp_;
};

template <typename Term, typename Weight, typename Cache>
ffi::Error RunPrefill(const Call<Weight, Cache>& call) {
  const int64_t row = call.places[0], start = call.places[1], last = call.places[2];
  const int64_t tokens = last + 1;  // the others are padding
  const bool is_there = row >= 0 && row < call.cache.rows && start >= 0 && start + tokens <= call.shape.capacity;
  if (!is_there || last < 0 || last >= call.shape.rows) {
    return ffi::Error::InvalidArgument("The chunk reaches beyond its padding or the cache.");
  }
  Workers workers(call.pool);
  Prefill<Term, Weight, Cache> prefill(call.shape, call.weights, tokens, start, workers);
  if (!prefill.has_memory()) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "No memory for the prefill's scratch.");
  }
  prefill.Run(call.x, call.cos, call.sin, call.cache, row, call.logits);
  return ffi::Error::Success();
}

template <typename Term, typename Weight, typename Cache>
constexpr auto kHandlePrefill = Handle<Weight, Cache, RunPrefill<Term, Weight, Cache>>;

}  // namespace
}  // namespace multipatch

#pragma GCC visibility push(default)  // the symbols that Python looks up

using multipatch::Half;
using multipatch::Pair;
#if defined(__AVX512BF16__)
using HalvesTerm = Pair;
#else
using HalvesTerm = float;
#endif
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchPrefill, (multipatch::kHandlePrefill<float, float, float>),
                              multipatch::DecoderBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchPrefillHalfCache, (multipatch::kHandlePrefill<float, float, Half>),
                              multipatch::DecoderBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchPrefillHalves, (multipatch::kHandlePrefill<HalvesTerm, Pair, Half>),
                              multipatch::DecoderBinding());

#pragma GCC visibility pop
