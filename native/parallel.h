// Runs tasks on XLA's own threads, so that no second pool of threads competes with them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace multipatch {

class Workers {
 public:
  explicit Workers(xla::ffi::ThreadPool& pool) : pool_(pool), count_(std::max<int64_t>(1, pool.num_threads())) {}

  int64_t count() const { return count_; }

  // Calls work(task, worker) once for every task. Each thread that takes part has its own worker number, which is below
  // count(). The calling thread takes part too. It waits until all tasks are done, not until all threads have come: a
  // thread that was busy elsewhere and comes late finds no task left, and touches nothing but `state`.
  template <typename Work>
  void Run(int64_t tasks, const Work& work) {
    auto state = std::make_shared<State>();
    auto join = [state, tasks, &work] {
      for (int64_t worker = -1, task; (task = state->next++) < tasks; state->done++) {
        if (worker < 0) worker = state->workers++;
        work(task, worker);
      }
    };
    for (int64_t i = 1; i < std::min(count_, tasks); i++) pool_.Schedule(decltype(join)(join));
    join();
    for (int spins = 0; state->done < tasks; spins++) {
      if (spins > 10000) std::this_thread::yield();
    }
  }

 private:
  struct State {
    std::atomic<int64_t> next{0}, done{0}, workers{0};
  };

  xla::ffi::ThreadPool& pool_;
  int64_t count_;
};

}  // namespace multipatch
