// Vectors of float32 in GCC's and Clang's own extension, as wide as the target's registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace multipatch {

// A tile of a product is kRows x (kVectors * kLanes) sums in registers, with one vector for each of kVectors columns
// and one for the row's number beside them.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12, kVectors = 2;  // of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6, kVectors = 2;  // of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 8, kVectors = 3;  // of 32
#else
constexpr int kLanes = 4, kRows = 4, kVectors = 2;  // of 16
#endif
constexpr int kColumns = kVectors * kLanes;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

inline Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

inline float Sum(Vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += v[i];
  return sum;
}

// e^x within 2 units in the last place for x in [-87, 88], at the border's value outside: 2^n e^r with |r| <= log(2) / 2,
// and e^r - 1 - r by Cephes' polynomial for expf.
inline Vec Exp(Vec x) {
  const Vec low = Vec{} - 87.0f, high = Vec{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer in its low bits
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;  // log(2) in two parts, the first exact times n
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  Vec power;
  std::memcpy(&power, &bits, sizeof bits);
  return p * power;
}

}  // namespace multipatch
