#include "pool.h"

#include <sched.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace expertfleet {
namespace {

constexpr int kSpins = 300;     // some tens of microseconds, then the processor is given away
constexpr int kYieldsFrom = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins, then gives the processor away between looks.
template <class Condition>
void wait_until(const Condition& condition) {
  for (int spin = 0; !condition(); ++spin) {
    if (spin < kYieldsFrom) pause();
    else sched_yield();
  }
}

class Pool {
 public:
  void run(int threads, const std::function<void(int)>& work) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    if (int(threads_.size()) != threads - 1 || owner_ != getpid()) start(threads - 1);
    keep(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      left_ = threads - 1;
      __atomic_store_n(&round_, round_ + 1, __ATOMIC_RELEASE);
    }
    if (threads > 1) wake_.notify_all();
    work(0);
    wait_until([&] { return __atomic_load_n(&left_, __ATOMIC_ACQUIRE) == 0; });
  }

  void pin(const int* cpus, int count) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    cpus_.assign(cpus, cpus + count);
    ++pinned_;
    start(0);
  }

 private:
  // Keeps the calling thread to the share's processor, once for each list of processors.
  void keep(int share) {
#if defined(__linux__)
    static thread_local int kept = 0;
    if (kept == pinned_) return;
    kept = pinned_;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus_[size_t(share) % cpus_.size()], &set);
    sched_setaffinity(0, sizeof set, &set);
#endif
  }

  void start(int threads) {
    if (owner_ != getpid()) {
      // After a fork the threads are the parent's; their handles must neither be joined nor destroyed.
      new std::vector<std::thread>(std::move(threads_));
      new (&mutex_) std::mutex;
      new (&wake_) std::condition_variable;
      threads_.clear();
    }
    stop();
    owner_ = getpid();
    for (int share = 1; share <= threads; ++share) {
      threads_.emplace_back([this, share, seen = round_] { serve(share, seen); });
    }
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = nullptr;
      __atomic_store_n(&round_, round_ + 1, __ATOMIC_RELEASE);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void serve(int share, uint64_t seen) {
    keep(share);
    for (;;) {
      for (int spin = 0; spin < kSpins && __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == seen; ++spin) pause();
      const std::function<void(int)>* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        work = work_;
      }
      if (!work) return;
      (*work)(share);
      __atomic_sub_fetch(&left_, 1, __ATOMIC_RELEASE);
    }
  }

  std::mutex running_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  std::vector<int> cpus_;
  int pinned_ = 0;  // how often cpus_ was given
  pid_t owner_ = getpid();
  const std::function<void(int)>* work_ = nullptr;
  uint64_t round_ = 0;
  int left_ = 0;
};

// Never destroyed: its threads end with the process.
Pool& the_pool() {
  static Pool* pool = new Pool;
  return *pool;
}

}  // namespace

void run_on_threads(int threads, const std::function<void(int)>& work) { the_pool().run(threads, work); }

void pin_threads(const int* cpus, int count) { the_pool().pin(cpus, count); }

void Barrier::wait() {
  const int round = __atomic_load_n(&round_, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == threads_) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&round_, round + 1, __ATOMIC_RELEASE);
    return;
  }
  wait_until([&] { return __atomic_load_n(&round_, __ATOMIC_ACQUIRE) != round; });
}

}  // namespace expertfleet
