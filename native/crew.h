// Threads that stay together for many short rounds of tasks.
//
// Workers::Run (parallel.h) wakes XLA's threads for each round, which takes some 10 microseconds. A step of the decoder
// has over a hundred rounds, each as short as that. So a Crew wakes them once. Between two rounds they spin, but not
// for long: a thread that finds nothing to do gives its core away.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace multipatch {

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Crew {
 public:
  explicit Crew(xla::ffi::ThreadPool& pool)
      : state_(std::make_shared<State>(std::clamp<int64_t>(pool.num_threads(), 1, kMostThreads))) {
    for (int64_t thread = 1; thread < state_->threads; thread++) {
      pool.Schedule([state = state_, thread] { Help(*state, thread); });
    }
  }
  ~Crew() { state_->open = false; }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Calls work(task) once for every task, and returns when all are done. Each thread has a share of neighbouring tasks,
  // whose memory it reads from one end to the other. A thread that is done helps the others. The calling thread takes
  // part, so it does not wait for threads that are busy elsewhere, only for tasks that they have begun.
  template <typename Work>
  void Run(int64_t tasks, const Work& work) {
    State& state = *state_;
    // The number of tasks is 0 while the round changes. Otherwise a thread could see the new number beside the old
    // round, and take a task before the round is open.
    state.tasks = 0;
    state.call = [](const void* work, int64_t task) { (*static_cast<const Work*>(work))(task); };
    state.work = &work;
    state.done = 0;
    state.round++;
    for (int64_t i = 0; i < state.threads; i++) state.shares[i].next = state.round << kShift | state.Begin(i, tasks);
    state.tasks = tasks;
    TakeAll(state, 0);
    for (int spins = 0; state.done < tasks; spins++) Wait(spins);
  }

 private:
  static constexpr int kShift = 32;
  static constexpr int kSpins = 4000;  // about 50 microseconds
  static constexpr int64_t kMostThreads = 64;

  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};  // the round, and in the lower half the next task of the share
  };
  struct State {
    explicit State(int64_t threads) : threads(threads), shares(new Share[threads]) {}
    // The first task of a thread's share, and the end of that of the thread before it.
    int64_t Begin(int64_t thread, int64_t all) const { return all * thread / threads; }

    const int64_t threads;
    const std::unique_ptr<Share[]> shares;
    uint64_t round = 0;
    std::atomic<int64_t> tasks{0}, done{0};
    std::atomic<void (*)(const void*, int64_t)> call{nullptr};
    std::atomic<const void*> work{nullptr};
    std::atomic<bool> open{true};
  };

  static void Wait(int spins) {
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }

  // Does what is left of a share of the round that is open; returns whether that was anything. A task that was taken
  // keeps its round open, so what the round's fields say holds until the task is done.
  static bool Take(State& state, int64_t thread) {
    bool some = false;
    for (;;) {
      uint64_t next = state.shares[thread].next;
      const int64_t task = next & ((uint64_t{1} << kShift) - 1);
      if (task >= state.Begin(thread + 1, state.tasks)) return some;
      if (!state.shares[thread].next.compare_exchange_strong(next, next + 1)) continue;
      state.call.load()(state.work, task);
      state.done++;
      some = true;
    }
  }

  // Does what is left of all shares, the thread's own one first.
  static bool TakeAll(State& state, int64_t thread) {
    bool some = false;
    for (int64_t i = 0; i < state.threads; i++) some |= Take(state, (thread + i) % state.threads);
    return some;
  }

  static void Help(State& state, int64_t thread) {
    for (int spins = 0; state.open; spins++) {
      if (TakeAll(state, thread)) spins = 0;
      Wait(spins);
    }
  }

  std::shared_ptr<State> state_;
};

}  // namespace multipatch
