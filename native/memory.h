// Memory in large pages, where Linux grants them.
#pragma once

#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace multipatch {

// Asks Linux for pages of 2 MB where some memory that nobody has touched yet will lie.
inline void AskForLargePages(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// An array of float32 numbers, freed with this object. It lies in pages of 2 MB where Linux grants them: the rows of a
// matrix are far apart, and with small pages they would be more pages than the TLB holds.
class Memory {
 public:
  explicit Memory(int64_t numbers) {
    constexpr size_t kPage = 1 << 21;
    const size_t bytes = (numbers * sizeof(float) + kPage - 1) / kPage * kPage;
    void* data = nullptr;  // stays null if there is not enough memory
    if (posix_memalign(&data, kPage, bytes)) data = nullptr;
    data_ = static_cast<float*>(data);
#if defined(__linux__)
    if (data_) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  float* get() const { return data_; }

 private:
  float* data_;
};

}  // namespace multipatch
