// The SigLIP encoder as one custom call of XLA on a CPU: all layers over the patches of one image tile.
//
// Kernels are float32 or bfloat16. Products are those of float32 numbers or, where the CPU is fast at that, of pairs of
// bfloat16 numbers, to which the inputs of a product are rounded. The rest is float32: sums, norms, GELU, the softmax,
// and the residual.
//
// It computes what `multipatch_jax.nn.siglip.Encoder` does, and its parameters have the names that they have there.
// setup.py builds it once for each instruction set; `multipatch_jax.nn.native` picks the best build for the CPU.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "attention.h"
#include "matmul.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace multipatch {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using HalfArray = ffi::Buffer<ffi::BF16>;

constexpr int64_t kColumnBlock = 384;  // most columns of a task of Apply
constexpr int64_t kPartRows = 120;     // about the fewest rows of a task; with fewer, packing costs too much

// (x - mean) / sqrt(variance + epsilon) * gain + bias, for one row. A vector that `out` has room for is written whole.
template <typename Number>
void LayerNorm(const float* x, const float* gain, const float* bias, int64_t width, float epsilon, Number* out) {
  const int64_t whole = width / kLanes * kLanes;
  Vec sums = {};
  for (int64_t i = 0; i < whole; i += kLanes) sums += Load(x + i);
  float mean = Sum(sums);
  for (int64_t i = whole; i < width; i++) mean += x[i];
  mean /= width;
  Vec squares = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec d = Load(x + i) - mean;
    squares += d * d;
  }
  float variance = Sum(squares);
  for (int64_t i = whole; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / std::sqrt(variance / width + epsilon);
  for (int64_t i = 0; i < whole; i += kLanes) {
    Store(out + i, (Load(x + i) - mean) * (Load(gain + i) * inverse) + Load(bias + i));
  }
  if (whole == width) return;
  Vec rest = {};
  for (int64_t i = whole; i < width; i++) rest[i - whole] = (x[i] - mean) * (gain[i] * inverse) + bias[i];
  Store(out + whole, rest);
}

// GELU in its tanh approximation, which equals x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). The exponential in the
// sigmoid is computed as a power of 2.
Vec Gelu(Vec x) {
  constexpr float scale = -2.0 * 0.7978845608028654 * 1.4426950408889634;
  const Vec exponent = x * (x * x * (0.044715f * scale) + scale);
  return x / (1.0f + Exp2(Min(Max(exponent, Vec{} - 126.0f), Vec{} + 126.0f)));
}

// What happens to a finished product once the bias is added: nothing, GELU, or the addition to the residual.
enum class Then { kNothing, kGelu, kAdd };

// Adds the bias to a tile of finished sums, does what `then` says, and writes the result to `out`. With kAdd that is
// the residual, to which the result is added.
template <Then then, typename Out>
void Finish(const float* sums, int64_t ld, const float* bias, Out* out, int64_t ld_out, int64_t rows, int64_t columns) {
  float padded[kColumns] = {};
  for (int64_t j = 0; j < columns; j++) padded[j] = bias[j];
  for (int64_t i = 0; i < rows; i++) {
    if (then == Then::kAdd) __builtin_prefetch(out + (i + kRows) * ld_out, 1);  // for the next tile
    for (int64_t j = 0; j < columns; j += kLanes) {                             // rows have room for whole vectors
      const Vec x = Load(sums + i * ld + j) + Load(padded + j);
      if (then == Then::kNothing) Store(out + i * ld_out + j, x);
      if (then == Then::kGelu) Store(out + i * ld_out + j, Gelu(x));
      if (then == Then::kAdd) Store(out + i * ld_out + j, Load(out + i * ld_out + j) + x);
    }
  }
}

// Scratch memory of a worker of Apply: a packed block of a kernel, and the sums of a task.
inline int64_t ApplySize(int64_t rows) {
  return kDepth * RoundUp(kColumnBlock, kColumns) + RoundUp(rows, kRows) * Stride(kColumnBlock);
}

template <typename Kernel, typename Out>
struct Dense {
  const Kernel* kernel;  // (depth, columns)
  const float* bias;     // (columns)
  Out* out;              // rows are `ld_out` numbers apart
};

// Applies several dense layers of one shape, (depth, columns), to the same input x, (rows, depth).
template <Then then, typename Term, typename Kernel, typename Out>
void Apply(const Element<Term>* x, int64_t ldx, std::initializer_list<Dense<Kernel, Out>> layers, int64_t rows,
           int64_t depth, int64_t columns, int64_t ld_out, float* scratch, Workers& workers) {
  constexpr int64_t kBlock = kDepth * kNumbers<Term>;  // numbers of the input that one accumulator sums
  const int64_t blocks = Count(columns, kColumnBlock);
  const int64_t count = blocks * layers.size();
  // A task is one block of columns of one layer, or with many threads a part of its rows. Each part packs the kernel's
  // block again.
  const int64_t parts = std::min(Count(2 * workers.count(), count), Count(rows, kPartRows));
  const int64_t part = RoundUp(Count(rows, parts), kRows);
  workers.Run(count * parts, [&](int64_t task, int64_t worker) {
    const auto& layer = layers.begin()[task / parts / blocks];
    const int64_t row = task % parts * part, column = task / parts % blocks * kColumnBlock;
    const int64_t height = std::min(part, rows - row), width = std::min(kColumnBlock, columns - column);
    if (height <= 0) return;
    Term* packed = reinterpret_cast<Term*>(scratch + worker * ApplySize(rows));
    float* sums = reinterpret_cast<float*>(packed + kDepth * RoundUp(kColumnBlock, kColumns));
    const int64_t ld = Stride(kColumnBlock);
    Out* out = layer.out + row * ld_out + column;
    for (int64_t k = 0; k < depth; k += kBlock) {
      const int64_t numbers = std::min(kBlock, depth - k);
      Pack(layer.kernel + k * columns + column, columns, numbers, width, packed);
      Ahead<Kernel> next(layer.kernel + (k + numbers) * columns + column, columns,
                         std::min(kBlock, depth - k - numbers), width, Count(height, kRows) * Count(width, kColumns));
      Multiply(reinterpret_cast<const Term*>(x + row * ldx + k), ldx / kNumbers<Term>,
               Panels<Term>{packed, Count(numbers, kNumbers<Term>)}, height, Count(numbers, kNumbers<Term>), width,
               sums, ld, k > 0, [&](int64_t i, int64_t j, int64_t tile_rows, int64_t tile_columns) {
                 next.Step();
                 if (k + numbers < depth) return;
                 Finish<then>(sums + i * ld + j, ld, layer.bias + column + j, out + i * ld_out + j, ld_out, tile_rows,
                              tile_columns);
               });
    }
  });
}

// The parameters of all layers, each with the layers along its first axis.
template <typename Kernels>
struct Layers {
  Array norm1_gain, norm1_bias;
  Kernels q_kernel;
  Array q_bias;
  Kernels k_kernel;
  Array k_bias;
  Kernels v_kernel;
  Array v_bias;
  Kernels out_kernel;
  Array out_bias, norm2_gain, norm2_bias;
  Kernels fc1_kernel;
  Array fc1_bias;
  Kernels fc2_kernel;
  Array fc2_bias;
};

// One layer of a parameter.
inline const float* Of(const Array& array, int64_t layer) {
  return array.typed_data() + layer * (array.element_count() / array.dimensions()[0]);
}
inline const Half* Of(const HalfArray& array, int64_t layer) {
  return static_cast<const Half*>(array.untyped_data()) + layer * (array.element_count() / array.dimensions()[0]);
}

template <typename Term, typename Kernels>
ffi::Error Encode(ffi::ThreadPool& pool, const Array& x, const Layers<Kernels>& p, ffi::Result<Array>& result,
                  int64_t heads, float epsilon) {
  using Number = Element<Term>;
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t layers = p.fc1_kernel.dimensions()[0], hidden = p.fc1_kernel.dimensions()[2];
  if (!rows) return ffi::Error::Success();
  Workers workers(pool);
  const Attention<Term> attention{rows, heads, width / heads};
  const int64_t ld_residual = Stride(width), ld = Stride<Number>(width), ld_hidden = Stride<Number>(hidden);
  int64_t size = 0;  // of the scratch memory, in float32 numbers
  const auto reserve = [&size](int64_t numbers) {
    const int64_t at = size;
    size += RoundUp(numbers, 16);
    return at;
  };
  const auto of_terms = [&](int64_t stride) { return reserve(rows * stride / kNumbers<Term>); };
  const int64_t at_residual = reserve(rows * ld_residual), at_normed = of_terms(ld), at_q = of_terms(ld),
                at_k = of_terms(ld), at_v = of_terms(ld), at_hidden = of_terms(ld_hidden),
                at_workers = reserve(workers.count() * std::max(attention.worker_size(), ApplySize(rows)));
  const Memory allocated(size);
  if (!allocated.get()) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "No memory for the encoder's scratch.");
  float *scratch = allocated.get(), *residual = scratch + at_residual, *per_worker = scratch + at_workers;
  const auto numbers = [scratch](int64_t at) { return reinterpret_cast<Number*>(scratch + at); };
  Number *normed = numbers(at_normed), *q = numbers(at_q), *k = numbers(at_k), *v = numbers(at_v),
         *mlp = numbers(at_hidden);

  constexpr int64_t kNormRows = 64;
  const auto normalise = [&](const float* gain, const float* bias) {
    workers.Run(Count(rows, kNormRows), [&](int64_t block, int64_t) {
      for (int64_t i = block * kNormRows; i < std::min(rows, (block + 1) * kNormRows); i++) {
        LayerNorm(residual + i * ld_residual, gain, bias, width, epsilon, normed + i * ld);
      }
    });
  };
  using Kernel = std::remove_cv_t<std::remove_pointer_t<decltype(Of(p.q_kernel, 0))>>;
  using Inner = std::initializer_list<Dense<Kernel, Number>>;
  using Added = std::initializer_list<Dense<Kernel, float>>;

  for (int64_t i = 0; i < rows; i++) {
    std::memcpy(residual + i * ld_residual, x.typed_data() + i * width, width * sizeof(float));
  }
  for (int64_t n = 0; n < layers; n++) {
    normalise(Of(p.norm1_gain, n), Of(p.norm1_bias, n));
    Apply<Then::kNothing, Term>(normed, ld,
                                Inner{{Of(p.q_kernel, n), Of(p.q_bias, n), q},
                                      {Of(p.k_kernel, n), Of(p.k_bias, n), k},
                                      {Of(p.v_kernel, n), Of(p.v_bias, n), v}},
                                rows, width, width, ld, per_worker, workers);
    attention.Run(q, k, v, ld, normed, ld, per_worker, workers);
    Apply<Then::kAdd, Term>(normed, ld, Added{{Of(p.out_kernel, n), Of(p.out_bias, n), residual}}, rows, width, width,
                            ld_residual, per_worker, workers);
    normalise(Of(p.norm2_gain, n), Of(p.norm2_bias, n));
    Apply<Then::kGelu, Term>(normed, ld, Inner{{Of(p.fc1_kernel, n), Of(p.fc1_bias, n), mlp}}, rows, width, hidden,
                             ld_hidden, per_worker, workers);
    Apply<Then::kAdd, Term>(mlp, ld_hidden, Added{{Of(p.fc2_kernel, n), Of(p.fc2_bias, n), residual}}, rows, hidden,
                            width, ld_residual, per_worker, workers);
  }
  for (int64_t i = 0; i < rows; i++) {
    std::memcpy(result->typed_data() + i * width, residual + i * ld_residual, width * sizeof(float));
  }
  return ffi::Error::Success();
}

// Kernels are float32 or bfloat16. `pairs` says whether products of bfloat16 kernels are of pairs, or of float32.
template <typename Kernels>
ffi::Error RunEncode(ffi::ThreadPool pool, Array x, Array norm1_gain, Array norm1_bias, Kernels q_kernel, Array q_bias,
                     Kernels k_kernel, Array k_bias, Kernels v_kernel, Array v_bias, Kernels out_kernel, Array out_bias,
                     Array norm2_gain, Array norm2_bias, Kernels fc1_kernel, Array fc1_bias, Kernels fc2_kernel,
                     Array fc2_bias, ffi::Result<Array> result, int64_t heads, float epsilon, bool pairs) {
  const Layers<Kernels> layers{norm1_gain, norm1_bias, q_kernel,   q_bias,   k_kernel,   k_bias,
                               v_kernel,   v_bias,     out_kernel, out_bias, norm2_gain, norm2_bias,
                               fc1_kernel, fc1_bias,   fc2_kernel, fc2_bias};
  if constexpr (std::is_same_v<Kernels, HalfArray>) {
    if (pairs) return Encode<Pair>(pool, x, layers, result, heads, epsilon);
  }
  return Encode<float>(pool, x, layers, result, heads, epsilon);
}

}  // namespace
}  // namespace multipatch

#pragma GCC visibility push(default)  // the symbols that Python looks up

// A call with the arguments of RunEncode.
template <typename Kernels>
auto Binding() {
  using multipatch::Array;
  return xla::ffi::Ffi::Bind()
      .Ctx<xla::ffi::ThreadPool>()
      .template Arg<Array>()  // x (patches, width), then parameters of all layers:
      .template Arg<Array>()  // layer_norm1
      .template Arg<Array>()
      .template Arg<Kernels>()  // q_proj
      .template Arg<Array>()
      .template Arg<Kernels>()  // k_proj
      .template Arg<Array>()
      .template Arg<Kernels>()  // v_proj
      .template Arg<Array>()
      .template Arg<Kernels>()  // out_proj
      .template Arg<Array>()
      .template Arg<Array>()  // layer_norm2
      .template Arg<Array>()
      .template Arg<Kernels>()  // fc1
      .template Arg<Array>()
      .template Arg<Kernels>()  // fc2
      .template Arg<Array>()
      .template Ret<Array>()
      .template Attr<int64_t>("heads")
      .template Attr<float>("epsilon")
      .template Attr<bool>("pairs");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchEncoder, multipatch::RunEncode<multipatch::Array>,
                              Binding<multipatch::Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchEncoderHalves, multipatch::RunEncode<multipatch::HalfArray>,
                              Binding<multipatch::HalfArray>());

#pragma GCC visibility pop
