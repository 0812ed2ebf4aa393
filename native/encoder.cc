// The SigLIP encoder in float32 as one custom call of XLA on a CPU: all layers over the patches of one image tile.
//
// It computes what `multipatch_jax.nn.siglip.Encoder` does, and its parameters have the names that they have there.
// setup.py builds it once for each instruction set; `multipatch_jax.nn.native` picks the best build for the CPU.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

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

constexpr int64_t kColumnBlock = 384;  // most columns of a task of Apply
constexpr int64_t kPartRows = 120;     // about the fewest rows of a task; with fewer, packing costs too much

// (x - mean) / sqrt(variance + epsilon) * gain + bias, for one row.
void LayerNorm(const float* x, const float* gain, const float* bias, int64_t width, float epsilon, float* out) {
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
  for (int64_t i = whole; i < width; i++) out[i] = (x[i] - mean) * (gain[i] * inverse) + bias[i];
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

// Adds the bias to a tile of finished sums and does what `then` says. With kAdd the result goes to `residual`; in the
// other cases it replaces the sums.
template <Then then>
void Finish(float* sums, int64_t ld, const float* bias, float* residual, int64_t rows, int64_t columns) {
  float padded[kColumns] = {};
  for (int64_t j = 0; j < columns; j++) padded[j] = bias[j];
  for (int64_t i = 0; i < rows; i++) {
    if (then == Then::kAdd) __builtin_prefetch(residual + (i + kRows) * ld, 1);  // for the next tile
    for (int64_t j = 0; j < columns; j += kLanes) {  // rows have room for whole vectors
      const Vec x = Load(sums + i * ld + j) + Load(padded + j);
      if (then == Then::kNothing) Store(sums + i * ld + j, x);
      if (then == Then::kGelu) Store(sums + i * ld + j, Gelu(x));
      if (then == Then::kAdd) Store(residual + i * ld + j, Load(residual + i * ld + j) + x);
    }
  }
}

struct Dense {
  const float *kernel, *bias;  // (depth, columns), (columns)
  float *out, *residual;       // both with rows `ld_out` numbers apart
};

// Applies several dense layers of one shape, (depth, columns), to the same input x, (rows, depth).
template <Then then>
void Apply(const float* x, int64_t ldx, std::initializer_list<Dense> layers, int64_t rows, int64_t depth,
           int64_t columns, int64_t ld_out, float* scratch, Workers& workers) {
  const int64_t blocks = Count(columns, kColumnBlock);
  const int64_t count = blocks * layers.size();
  // A task is one block of columns of one layer, or with many threads a part of its rows. Each part packs the kernel's
  // block again.
  const int64_t parts = std::min(Count(2 * workers.count(), count), Count(rows, kPartRows));
  const int64_t part = RoundUp(Count(rows, parts), kRows);
  workers.Run(count * parts, [&](int64_t task, int64_t worker) {
    const Dense& layer = layers.begin()[task / parts / blocks];
    const int64_t row = task % parts * part, column = task / parts % blocks * kColumnBlock;
    const int64_t height = std::min(part, rows - row), width = std::min(kColumnBlock, columns - column);
    if (height <= 0) return;
    float* packed = scratch + worker * kDepth * kColumnBlock;
    const int64_t at = row * ld_out + column;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t terms = std::min(kDepth, depth - k);
      Pack(layer.kernel + k * columns + column, columns, terms, width, packed);
      Ahead next(layer.kernel + (k + terms) * columns + column, columns, std::min(kDepth, depth - k - terms), width,
                 Count(height, kRows) * Count(width, kColumns));
      Multiply(x + row * ldx + k, ldx, packed, height, terms, width, layer.out + at, ld_out, k > 0,
               [&](int64_t i, int64_t j, int64_t tile_rows, int64_t tile_columns) {
                 next.Step();
                 if (k + terms < depth) return;
                 Finish<then>(layer.out + at + i * ld_out + j, ld_out, layer.bias + column + j,
                              layer.residual + at + i * ld_out + j, tile_rows, tile_columns);
               });
    }
  });
}

ffi::Error Encode(ffi::ThreadPool pool, Array x, Array norm1_gain, Array norm1_bias, Array q_kernel, Array q_bias,
                  Array k_kernel, Array k_bias, Array v_kernel, Array v_bias, Array out_kernel, Array out_bias,
                  Array norm2_gain, Array norm2_bias, Array fc1_kernel, Array fc1_bias, Array fc2_kernel,
                  Array fc2_bias, ffi::Result<Array> result, int64_t heads, float epsilon) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t layers = fc1_kernel.dimensions()[0], hidden = fc1_kernel.dimensions()[2];
  if (!rows) return ffi::Error::Success();
  Workers workers(pool);
  const Attention attention{rows, heads, width / heads};
  const int64_t ld = Stride(width), ld_hidden = Stride(hidden);
  int64_t size = 0;
  const auto reserve = [&size](int64_t numbers) {
    const int64_t at = size;
    size += RoundUp(numbers, 16);
    return at;
  };
  const int64_t at_residual = reserve(rows * ld), at_normed = reserve(rows * ld), at_q = reserve(rows * ld),
                at_k = reserve(rows * ld), at_v = reserve(rows * ld), at_sums = reserve(rows * ld),
                at_hidden = reserve(rows * ld_hidden),
                at_workers =
                    reserve(workers.count() * std::max(attention.worker_size(), kDepth * RoundUp(kColumnBlock, kColumns)));
  const Memory allocated(size);
  if (!allocated.get()) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "No memory for the encoder's scratch.");
  float* scratch = allocated.get();
  float *residual = scratch + at_residual, *normed = scratch + at_normed, *q = scratch + at_q, *k = scratch + at_k,
        *v = scratch + at_v, *sums = scratch + at_sums, *mlp = scratch + at_hidden, *per_worker = scratch + at_workers;

  constexpr int64_t kNormRows = 64;
  const auto normalise = [&](const float* gain, const float* bias) {
    workers.Run(Count(rows, kNormRows), [&](int64_t block, int64_t) {
      for (int64_t i = block * kNormRows; i < std::min(rows, (block + 1) * kNormRows); i++) {
        LayerNorm(residual + i * ld, gain, bias, width, epsilon, normed + i * ld);
      }
    });
  };
  const auto of_layer = [](const Array& array, int64_t layer) {
    return array.typed_data() + layer * (array.element_count() / array.dimensions()[0]);
  };

  for (int64_t i = 0; i < rows; i++) std::memcpy(residual + i * ld, x.typed_data() + i * width, width * sizeof(float));
  for (int64_t n = 0; n < layers; n++) {
    normalise(of_layer(norm1_gain, n), of_layer(norm1_bias, n));
    Apply<Then::kNothing>(normed, ld,
                          {{of_layer(q_kernel, n), of_layer(q_bias, n), q, q},
                           {of_layer(k_kernel, n), of_layer(k_bias, n), k, k},
                           {of_layer(v_kernel, n), of_layer(v_bias, n), v, v}},
                          rows, width, width, ld, per_worker, workers);
    attention.Run(q, k, v, ld, normed, ld, per_worker, workers);
    Apply<Then::kAdd>(normed, ld, {{of_layer(out_kernel, n), of_layer(out_bias, n), sums, residual}}, rows, width, width,
                      ld, per_worker, workers);
    normalise(of_layer(norm2_gain, n), of_layer(norm2_bias, n));
    Apply<Then::kGelu>(normed, ld, {{of_layer(fc1_kernel, n), of_layer(fc1_bias, n), mlp, mlp}}, rows, width, hidden,
                       ld_hidden, per_worker, workers);
    Apply<Then::kAdd>(mlp, ld_hidden, {{of_layer(fc2_kernel, n), of_layer(fc2_bias, n), sums, residual}}, rows, hidden,
                      width, ld, per_worker, workers);
  }
  for (int64_t i = 0; i < rows; i++) {
    std::memcpy(result->typed_data() + i * width, residual + i * ld, width * sizeof(float));
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace multipatch

#pragma GCC visibility push(default)  // the two symbols that Python looks up

XLA_FFI_DEFINE_HANDLER_SYMBOL(MultipatchEncoder, multipatch::Encode,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<multipatch::Array>()  // x (patches, width), then parameters of all layers:
                                  .Arg<multipatch::Array>()  // layer_norm1
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // q_proj
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // k_proj
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // v_proj
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // out_proj
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // layer_norm2
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // fc1
                                  .Arg<multipatch::Array>()
                                  .Arg<multipatch::Array>()  // fc2
                                  .Arg<multipatch::Array>()
                                  .Ret<multipatch::Array>()
                                  .Attr<int64_t>("heads")
                                  .Attr<float>("epsilon"));

// Whether this CPU has the instructions that this library was built with.
extern "C" int MultipatchSupported() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}

#pragma GCC visibility pop
