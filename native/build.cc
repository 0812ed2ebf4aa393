// What this build is: the instructions that it needs, and the sizes by which it packs weights.
#include "simd.h"

#pragma GCC visibility push(default)  // the symbols that Python looks up

// Whether this CPU has the instructions that this library was built with.
extern "C" int MultipatchSupported() {
#if defined(__AVX512BF16__)
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}

// Columns of a vector, and of a panel of packed weights.
extern "C" int MultipatchLanes() { return multipatch::kLanes; }
extern "C" int MultipatchColumns() { return multipatch::kColumns; }

#pragma GCC visibility pop
