// Vectors of float32 that are as wide as the target's registers, by the vector extension of GCC and Clang; and
// bfloat16, of which two neighbouring terms of a product are one 32-bit lane.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace multipatch {

// A tile of a matrix product has kRows rows of kVectors vectors of kLanes sums, all in registers. Beside the sums there
// must be registers for kVectors vectors of the right side and for one number of the left side, copied to all lanes.
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

// bfloat16 is the upper half of a float32. Half is the bits of one, Pair those of two: the first is in the lower half.
typedef uint16_t __attribute__((may_alias)) Half;
typedef uint32_t __attribute__((may_alias)) Pair;
typedef uint32_t PairVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UnalignedPairVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
typedef uint16_t UnalignedHalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

inline PairVec Load(const Pair* p) { return *reinterpret_cast<const UnalignedPairVec*>(p); }
inline void Store(Pair* p, PairVec v) { *reinterpret_cast<UnalignedPairVec*>(p) = v; }
inline PairVec Bits(Vec v) { return reinterpret_cast<PairVec>(v); }
inline Vec AsFloats(PairVec v) { return reinterpret_cast<Vec>(v); }

// The numbers of kLanes Halves, each in a lane's lower half.
inline PairVec Widen(const Half* p) {
#if defined(__AVX512F__)  // one instruction, for which GCC 12 would take five
  return reinterpret_cast<PairVec>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
  return __builtin_convertvector(*reinterpret_cast<const UnalignedHalfVec*>(p), PairVec);
}
inline Vec Load(const Half* p) { return AsFloats(Widen(p) << 16); }
inline float ToFloat(float x) { return x; }
inline float ToFloat(Half x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// Stores numbers rounded to bfloat16, to the nearest and of two as near to the even one. NaN stays NaN.
inline void Store(Half* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &halves, sizeof halves);
#else
  const PairVec bits = Bits(v);
  const PairVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const PairVec quiet = (bits >> 16) | 0x40;
  const IntVec number = v == v;
  const PairVec chosen = (rounded & reinterpret_cast<PairVec>(number)) | (quiet & ~reinterpret_cast<PairVec>(number));
  *reinterpret_cast<UnalignedHalfVec*>(p) = __builtin_convertvector(chosen, HalfVec);
#endif
}

// Adds to every lane of `sums` the product of a number, or the two products of a pair.
inline void MultiplyAdd(Vec& sums, float left, Vec right) { sums += left * right; }
inline void MultiplyAdd(Vec& sums, Pair left, PairVec right) {
#if defined(__AVX512BF16__)
  // Assembly, because GCC 12 would copy the sums for the intrinsic in every step.
  const PairVec copies = left - PairVec{};
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(right), "v"(copies));
#else
  const PairVec copies = left - PairVec{};
  sums += AsFloats(copies << 16) * AsFloats(right << 16);
  sums += AsFloats(copies & 0xffff0000u) * AsFloats(right & 0xffff0000u);
#endif
}

// The greater or the lesser number of each lane, or b's where one of the two is NaN. That is one instruction of x86,
// but compilers do not use it for a comparison with a constant, hence the intrinsics.
#if defined(__AVX512F__)
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX2__)
inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
#else
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec Min(Vec a, Vec b) { return a < b ? a : b; }
#endif

inline float Max(Vec v) {
  float most = v[0];
  for (int i = 1; i < kLanes; i++) most = v[i] > most ? v[i] : most;
  return most;
}

inline float Sum(Vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += v[i];
  return sum;
}

// 2^x for x in [-126, 127], within 2 units in the last place. The result for NaN is NaN; for other x it is meaningless.
// It is 2^n 2^r with an integer n and |r| <= 1/2; the polynomial for 2^r is that of exp2f in Cephes.
inline Vec Exp2(Vec x) {
  const float magic = 12582912.0f + 127;  // a sum with 1.5 * 2^23 has the rounded x in its low bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;  // moves n + 127 to the bits of the exponent
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace multipatch
