// A pool of threads that share one call after another; the calling thread is one of them.
#pragma once

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

}  // namespace expertfleet
