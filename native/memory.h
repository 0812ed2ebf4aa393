// Scratch memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace multipatch {

// Numbers in pages of 2 MB where Linux gives them: rows of a matrix are far apart, and small pages are too many to look
// up at once.
class Memory {
 public:
  explicit Memory(int64_t numbers) {
    constexpr size_t kPage = 1 << 21;
    const size_t bytes = (numbers * sizeof(float) + kPage - 1) / kPage * kPage;
    void* data = nullptr;  // as it stays where there is no memory
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
