// One step of the text decoder, a Llama, as one custom call of XLA on a CPU: a token of each row through all layers,
// and its logits. It computes what `multipatch_jax.nn.llama` does with a cache.
//
// Weights are packed once, by the custom call Pack (panels.h says how). The cache is updated in place: the caller
// promises XLA that the results are the same memory as the arguments. Activations are float32.
#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "crew.h"
#include "decoder_attention.h"
#include "matmul.h"
#include "memory.h"
#include "panels.h"
#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace multipatch {
namespace {

template <typename Term, typename Cache>
class Step {
 public:
  Step(const Shape& shape, const Weights<Term>& weights, float* scratch, Crew& crew)
      : s_(shape), w_(weights), crew_(crew), attention_{s_.heads, s_.kv_heads, s_.head_width, s_.capacity} {
    const auto take = [&scratch](int64_t numbers) {
      float* at = scratch;
      scratch += RoundUp(numbers, 16);
      return at;
    };
    x_ = take(s_.rows * s_.width);
    normed_ = take(s_.rows * s_.width);
    qkv_ = take(s_.rows * Wide(s_.qkv()));
    mixed_ = take(s_.rows * s_.queries());
    sums_ = take(s_.rows * Wide(std::max(s_.width, 2 * s_.hidden)));
    mlp_ = take(s_.rows * Wide(s_.hidden));
    parts_ = take(s_.rows * attention_.parts_size());
  }

  static int64_t ScratchSize(const Shape& s) {
    const DecoderAttention<Cache> attention{s.heads, s.kv_heads, s.head_width, s.capacity};
    return s.rows * (2 * s.width + Wide(s.qkv()) + s.queries() + Wide(std::max(s.width, 2 * s.hidden)) +
                     Wide(s.hidden) + attention.parts_size()) +
           7 * 16;
  }

  // positions of rows that hold no token are outside of the cache; nothing of these rows is read or written.
  void Run(const float* x, const int32_t* positions, const float* cos, const float* sin, const Cached<Cache>& cache,
           float* logits) {
    int64_t active[kMostRows], count = 0;
    for (int64_t i = 0; i < s_.rows; i++) {
      std::fill(logits + i * s_.vocabulary, logits + (i + 1) * s_.vocabulary, 0.0f);
      if (positions[i] < 0 || positions[i] >= s_.capacity) continue;
      std::copy(x + i * s_.width, x + (i + 1) * s_.width, x_ + count * s_.width);
      active[count++] = i;
    }
    for (int64_t n = 0; n < s_.layers; n++) {
      Normalise(w_.norm1 + n * s_.width, count);
      Product(normed_, s_.width, count, w_.qkv + n * PackedSize<Term>(s_.width, s_.qkv()), s_.width, s_.qkv(), qkv_);
      for (int64_t i = 0; i < count; i++) {
        const int64_t row = active[i], half = s_.head_width / 2;
        float* q = qkv_ + i * Wide(s_.qkv());
        Rotate(q, s_.heads + s_.kv_heads, s_.head_width, cos + row * half, sin + row * half);
        attention_.Write(q + s_.queries(), q + s_.queries() + s_.keys(), positions[row], row, cache.Keys(n),
                         cache.Values(n));
      }
      Attend(active, count, positions, cache.Keys(n), cache.Values(n));
      Product(mixed_, s_.queries(), count, w_.out + n * PackedSize<Term>(s_.queries(), s_.width), s_.queries(),
              s_.width, sums_);
      Add(Wide(s_.width), count);
      Normalise(w_.norm2 + n * s_.width, count);
      GateUp(count, w_.gate_up + n * 2 * PackedSize<Term>(s_.width, RoundUp(s_.hidden, kColumns)));
      Product(mlp_, Wide(s_.hidden), count, w_.down + n * PackedSize<Term>(s_.hidden, s_.width), s_.hidden, s_.width,
              sums_);
      Add(Wide(s_.width), count);
    }
    Normalise(w_.norm, count);
    Head(active, count, logits);
  }

  static constexpr int64_t kMostRows = 64;

 private:
  static int64_t Wide(int64_t columns) { return RoundUp(columns, kColumns); }

  void Normalise(const float* scale, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) RmsNorm(x_ + i * s_.width, scale, s_.width, s_.epsilon, normed_ + i * s_.width);
  }

  // Adds sums to the residual.
  void Add(int64_t ld, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t j = 0; j < s_.width; j++) x_[i * s_.width + j] += sums_[i * ld + j];
    }
  }

  void Product(const float* x, int64_t ldx, int64_t rows, const Term* packed, int64_t depth, int64_t columns,
               float* out) {
    crew_.Run(Count(columns, kColumns), [&](int64_t task) {
      const int64_t column = task * kColumns;
      Panel(x, ldx, rows, packed, depth, columns, column, out + column, Wide(columns));
    });
  }

  void GateUp(int64_t rows, const Term* packed) {
    const int64_t ld = Wide(s_.hidden);
    crew_.Run(Count(s_.hidden, kColumns), [&](int64_t task) {
      const int64_t column = task * kColumns, columns = 2 * ld;
      float* sums = sums_ + 2 * column;
      Panel(normed_, s_.width, rows, packed, s_.width, columns, 2 * column, sums, columns);
      Panel(normed_, s_.width, rows, packed, s_.width, columns, 2 * column + kColumns, sums + kColumns, columns);
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < kColumns; j += kLanes) {
          const float* gate = sums + i * columns + j;
          Store(mlp_ + i * ld + column + j, SwiGlu(Load(gate), Load(gate + kColumns)));
        }
      }
    });
  }

  void Attend(const int64_t* active, int64_t count, const int32_t* positions, const Cache* keys, const Cache* values) {
    const int64_t chunks = attention_.chunks();
    crew_.Run(count * s_.kv_heads * chunks, [&](int64_t task) {
      const int64_t i = task / chunks / s_.kv_heads, head = task / chunks % s_.kv_heads, chunk = task % chunks;
      attention_.Chunk(qkv_ + i * Wide(s_.qkv()), keys, values, active[i], head, chunk, positions[active[i]] + 1,
                       parts_ + i * attention_.parts_size());
    });
    for (int64_t i = 0; i < count; i++) {
      attention_.Join(parts_ + i * attention_.parts_size(), positions[active[i]] + 1, mixed_ + i * s_.queries());
    }
  }

  void Head(const int64_t* active, int64_t count, float* logits) {
    crew_.Run(Count(s_.vocabulary, kColumns), [&](int64_t task) {
      const int64_t column = task * kColumns, columns = std::min<int64_t>(kColumns, s_.vocabulary - column);
      float sums[kMostRows * kColumns];
      Panel(normed_, s_.width, count, w_.head, s_.width, s_.vocabulary, column, sums, kColumns);
      for (int64_t i = 0; i < count; i++) {
        std::copy(sums + i * kColumns, sums + i * kColumns + columns, logits + active[i] * s_.vocabulary + column);
      }
    });
  }

  const Shape& s_;
  const Weights<Term>& w_;
  Crew& crew_;
  DecoderAttention<Cache> attention_;
  float *x_, *normed_, *qkv_, *mixed_, *sums_, *mlp_, *parts_;
};

// Weights are float32 or pairs, and the cache is of float32 or bfloat16.
template <typename Term, typename Cache>
ffi::Error RunStep(const Call<Term, Cache>& call) {
  if (call.shape.rows > Step<Term, Cache>::kMostRows) {
    return ffi::Error::InvalidArgument("The decoder's step has too many rows.");
  }
  const std::unique_ptr<float[]> scratch(new float[Step<Term, Cache>::ScratchSize(call.shape)]);
  Crew crew(call.pool);
  Step<Term, Cache>(call.shape, call.weights, scratch.get(), crew)
      .Run(call.x, call.places, call.cos, call.sin, call.cache, call.logits);
  return ffi::Error::Success();
}

template <typename Term, typename Cache>
constexpr auto kHandleStep = Handle<Term, Cache, RunStep<Term, Cache>>;

// Packs kernels (layers, depth, columns).
template <typename Number, typename Term>
ffi::Error RunPack(ffi::AnyBuffer kernels, ffi::Result<ffi::AnyBuffer> packed) {
  const auto shape = kernels.dimensions();
  const int64_t depth = shape[1], columns = shape[2];
  AskForLargePages(packed->untyped_data(), packed->size_bytes());
  for (int64_t n = 0; n < shape[0]; n++) {
    Pack(Data<const Number>(kernels) + n * depth * columns, columns, depth, columns,
         Data<Term>(*packed) + n * PackedSize<Term>(depth, columns));
  }
  return ffi::Error::Success();
}

auto PackBinding() { return ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>(); }

}  // namespace
}  // namespace multipatch

#pragma GCC visibility push(default)  // the symbols that Python looks up

using multipatch::Half;
using multipatch::Pair;
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchStep, (multipatch::kHandleStep<float, float>), multipatch::DecoderBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchStepHalfCache, (multipatch::kHandleStep<float, Half>),
                              multipatch::DecoderBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchStepHalves, (multipatch::kHandleStep<Pair, Half>),
                              multipatch::DecoderBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchPack, (multipatch::RunPack<float, float>), multipatch::PackBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchPackHalves, (multipatch::RunPack<Half, Pair>), multipatch::PackBinding());

#pragma GCC visibility pop
