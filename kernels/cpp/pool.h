// A pool of threads that share one call after another; the calling thread is one of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace expertfleet {

// Runs work(share) for share 0 .. threads - 1, at the same time, and returns when all have ended. Calls from several
// threads go one after another. The pool's threads may run wherever the thread may that called first.
void run_on_threads(int threads, const std::function<void(int)>& work);

// From now on share s keeps to cpus[s modulo count]. The threads that exist are ended.
void pin_threads(const int* cpus, int count);

// Where the threads of one run wait for each other.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  alignas(64) int arrived_ = 0;
  alignas(64) int round_ = 0;
};

// Items 0 .. total - 1 for threads that take runs of them, long ones first: memory is read in long stretches, and no
// thread waits long for another.
class Items {
 public:
  Items(int64_t total, int threads) : total_(total), parts_(4 * threads) {}

  template <class Work>
  void each(const Work& work) {
    int64_t first = __atomic_load_n(&next_, __ATOMIC_RELAXED);
    while (first < total_) {
      const int64_t last = std::min(total_, first + std::max<int64_t>(1, (total_ - first) / parts_));
      if (!__atomic_compare_exchange_n(&next_, &first, last, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
      for (int64_t item = first; item < last; ++item) work(item);
      first = __atomic_load_n(&next_, __ATOMIC_RELAXED);
    }
  }

 private:
  const int64_t total_, parts_;
  alignas(64) int64_t next_ = 0;
};

}  // namespace expertfleet
