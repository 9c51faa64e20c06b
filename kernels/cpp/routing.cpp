// What routers call (through ctypes): the gate's choice, who of several is asked, what each shard is asked, and the exact combine.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "pool.h"
#include "routing.h"

namespace expertfleet {
namespace {

// Values of a sum that stay in the first cache while the rows pass.
constexpr int64_t kCombined = 2048;

// Asks for memory that will soon be read: rows come from another processor's cache, one line after the other if nobody asks before.
inline void fetch(uintptr_t begin, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const void*>(begin + at));
}

inline float widened(float value) { return value; }
inline float widened(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <class T>
inline __attribute__((always_inline)) void add_row(const T* row, float weight, int64_t count, bool first, float* sum) {
  if (first) {
    for (int64_t i = 0; i < count; ++i) sum[i] = widened(row[i]) * weight;
  } else {
    for (int64_t i = 0; i < count; ++i) sum[i] += widened(row[i]) * weight;
  }
}

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

FOR_EVERY_PROCESSOR void add(const uint16_t* row, float weight, int64_t count, bool first, float* sum) {
  add_row(row, weight, count, first, sum);
}
FOR_EVERY_PROCESSOR void add(const float* row, float weight, int64_t count, bool first, float* sum) {
  add_row(row, weight, count, first, sum);
}

// Whether none has an exponent of ones alone.
FOR_EVERY_PROCESSOR bool all_finite(const float* values, int64_t count) {
  uint32_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    wrong |= uint32_t((bits & 0x7f800000u) == 0x7f800000u);
  }
  return !wrong;
}

// 1 / (1 + e^-x), NaN for NaN: e^-x = 2^n e^r by Taylor's series to r^7, which is off by less than 3e-7 of itself. Single operations
// in one order, so the same bits on every processor.
FOR_EVERY_PROCESSOR void sigmoid(const float* logits, int64_t count, float* scores) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (int64_t i = 0; i < count; ++i) {
    const float x = std::min(std::max(-logits[i], -87.0f), 88.0f);
    const float shifted = x * 1.44269504f + kMagic, n = shifted - kMagic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1.98412698e-4f;
    sum = sum * r + 1.38888889e-3f;
    sum = sum * r + 8.33333333e-3f;
    sum = sum * r + 4.16666667e-2f;
    sum = sum * r + 1.66666667e-1f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    uint32_t exponent, power;
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&power, &sum, 4);
    power += exponent << 23;
    std::memcpy(&sum, &power, 4);
    scores[i] = logits[i] == logits[i] ? 1.0f / (1.0f + sum) : logits[i];
  }
}

// NaN is more than anything: a row with one must not pass for a good one.
inline bool is_more(float x, float y) { return x > y || (x != x && y == y); }

// The index of the largest of those not `taken`, the first of several equal ones.
int64_t largest(const float* values, const uint8_t* taken, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (!taken[i] && (best < 0 || is_more(values[i], values[best]))) best = i;
  }
  return best;
}

// Takes all groups away but those with the largest sums of their two best values.
void keep_best_groups(const float* values, int64_t count, int64_t groups, int64_t kept, uint8_t* taken) {
  const int64_t size = count / groups;
  std::vector<float> sums(static_cast<size_t>(groups));
  for (int64_t group = 0; group < groups; ++group) {
    uint8_t* mine = taken + group * size;
    const float* here = values + group * size;
    const int64_t first = largest(here, mine, size);
    mine[first] = 1;
    const int64_t second = largest(here, mine, size);
    sums[size_t(group)] = here[first] + here[second];
  }
  std::vector<uint8_t> chosen(static_cast<size_t>(groups), 0);
  for (int64_t number = 0; number < kept; ++number) chosen[size_t(largest(sums.data(), chosen.data(), groups))] = 1;
  for (int64_t group = 0; group < groups; ++group) std::memset(taken + group * size, !chosen[size_t(group)], size_t(size));
}

}  // namespace
}  // namespace expertfleet

using namespace expertfleet;

extern "C" {

// The gate: logits [tokens, experts] to the ids of the best `top_k` by score and bias [experts], and their weights [tokens, top_k].
void expertfleet_choose(int threads, const float* logits, const float* bias, int64_t num_tokens, int64_t num_experts,
                        int64_t top_k, int64_t groups, int64_t kept_groups, int normalise, float factor, int64_t* ids,
                        float* weights) {
  Items tokens(num_tokens, threads);
  run_on_threads(threads, [&](int) {
    std::vector<float> scores(static_cast<size_t>(num_experts)), biased(scores.size());
    std::vector<uint8_t> taken(scores.size());
    tokens.each([&](int64_t token) {
      sigmoid(logits + token * num_experts, num_experts, scores.data());
      for (int64_t i = 0; i < num_experts; ++i) biased[size_t(i)] = scores[size_t(i)] + bias[i];
      std::fill(taken.begin(), taken.end(), 0);
      if (groups > 1) keep_best_groups(biased.data(), num_experts, groups, kept_groups, taken.data());
      float total = 0.0f;
      for (int64_t k = token * top_k; k < (token + 1) * top_k; ++k) {
        ids[k] = largest(biased.data(), taken.data(), num_experts);
        taken[size_t(ids[k])] = 1;
        weights[k] = scores[size_t(ids[k])];
        total += weights[k];  // in rank order
      }
      for (int64_t k = token * top_k; k < (token + 1) * top_k; ++k) {
        if (normalise) weights[k] /= total + 1e-20f;
        weights[k] *= factor;
      }
    });
  });
}

// out[token] = the sum over k, in this order, of weights[token][k] times the row at rows[token * top_k + k]; rows are bf16 or
// float32, multiplication and addition round apart. Returns whether all of it is finite.
int expertfleet_combine(int threads, int float32, const uintptr_t* rows, const float* weights, int64_t num_tokens,
                        int64_t top_k, int64_t hidden, float* out) {
  int finite = 1;
  const size_t size = float32 ? sizeof(float) : sizeof(uint16_t);
  Items tokens(num_tokens, threads);
  run_on_threads(threads, [&](int) {
    tokens.each([&](int64_t token) {
      const uintptr_t* mine = rows + token * top_k;
      const float* weight = weights + token * top_k;
      float* sum = out + token * hidden;
      for (int64_t first = 0; first < hidden; first += kCombined) {
        const int64_t count = std::min(kCombined, hidden - first);
        for (int64_t k = 0; k < top_k; ++k) fetch(mine[k] + size_t(first) * size, size_t(count) * size);
        for (int64_t k = 0; k < top_k; ++k) {
          if (float32) {
            add(reinterpret_cast<const float*>(mine[k]) + first, weight[k], count, k == 0, sum + first);
          } else {
            add(reinterpret_cast<const uint16_t*>(mine[k]) + first, weight[k], count, k == 0, sum + first);
          }
        }
        if (!all_finite(sum + first, count)) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
      }
    });
  });
  return finite;
}

// Chooses a holder for each activated expert: those with the fewest holders first, in the order of their ids, each the holder that
// was chosen least, the first of several. replicas[shard * stride + expert] says who holds whom; owners[expert] is -1 for nobody,
// and for experts that no route asks for.
// Returns 1 for an expert that there is not.
int expertfleet_choose_replicas(const uint8_t* replicas, int64_t num_shards, int64_t stride, int64_t num_experts,
                       const int64_t* experts, int64_t num_routes, int64_t* owners) {
  std::vector<int64_t> holders(num_experts, -1), load(num_shards, 0), activated;
  for (int64_t route = 0; route < num_routes; ++route) {
    const int64_t expert = experts[route];
    if (expert < 0 || expert >= num_experts) return 1;
    if (holders[expert] >= 0) continue;
    holders[expert] = 0;
    for (int64_t shard = 0; shard < num_shards; ++shard) holders[expert] += replicas[shard * stride + expert] != 0;
    activated.push_back(expert);
  }
  std::sort(activated.begin(), activated.end(), [&](int64_t a, int64_t b) {
    return holders[a] != holders[b] ? holders[a] < holders[b] : a < b;
  });
  std::fill(owners, owners + num_experts, -1);
  for (const int64_t expert : activated) {
    int64_t best = -1;
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      if (replicas[shard * stride + expert] && (best < 0 || load[shard] < load[best])) best = shard;
    }
    if (best >= 0) ++load[best];
    owners[expert] = best;
  }
  return 0;
}

// What each shard is asked. Route i is routes[i] (or i, without routes) and asks for experts[i], which belongs to owners[expert], from
// -1, nobody, to num_shards - 1; its row is its number / top_k. Sorted by owner, then expert, then as they came: `sorted` are the routes,
// sorted_experts theirs, and `at` which of its shard's rows each is for. The rows of shard s are rows[row_ends[s] .. row_ends[s + 1]],
// ascending, its routes those from route_ends[s] to route_ends[s + 1], and it is asked for activated[s] experts; those of nobody come
// before route_ends[0]. Returns 1 for an expert that there is not.
int expertfleet_partition_routes(const int64_t* owners, int64_t num_experts, int64_t num_shards, const int64_t* experts,
                          const int64_t* routes, int64_t num_routes, int64_t top_k, int64_t num_rows, int64_t* sorted,
                          int64_t* rows, int64_t* route_ends, int64_t* row_ends, int64_t* activated, int32_t* sorted_experts,
                          int32_t* at) {
  std::vector<int64_t> order(static_cast<size_t>(num_routes)), place(static_cast<size_t>(num_rows));
  std::vector<int64_t> starts(static_cast<size_t>(num_experts)), asked;  // by expert: its number of routes, then where the next goes
  for (int64_t i = 0; i < num_routes; ++i) {
    if (experts[i] < 0 || experts[i] >= num_experts) return 1;
    if (!starts[size_t(experts[i])]++) asked.push_back(experts[i]);
  }
  std::sort(asked.begin(), asked.end(), [&](int64_t a, int64_t b) {
    return owners[a] != owners[b] ? owners[a] < owners[b] : a < b;
  });
  int64_t before = 0;
  for (const int64_t expert : asked) {
    const int64_t count = starts[size_t(expert)];
    starts[size_t(expert)] = before;
    before += count;
  }
  for (int64_t i = 0; i < num_routes; ++i) order[size_t(starts[size_t(experts[i])]++)] = i;
  int64_t next = 0, num_asked = 0;
  for (int64_t shard = -1; shard < num_shards; ++shard) {
    const int64_t first = next, first_row = num_asked;
    std::fill(place.begin(), place.end(), -1);
    for (; next < num_routes && owners[experts[order[size_t(next)]]] == shard; ++next) {
      const int64_t i = order[size_t(next)];
      sorted[next] = routes ? routes[i] : i;
      sorted_experts[next] = int32_t(experts[i]);
      place[size_t(sorted[next] / top_k)] = 0;
    }
    route_ends[shard + 1] = next;
    row_ends[shard + 1] = 0;
    if (shard < 0) continue;
    if (next > first) {
      for (int64_t row = 0; row < num_rows; ++row) {
        if (place[size_t(row)] < 0) continue;
        place[size_t(row)] = num_asked - first_row;
        rows[num_asked++] = row;
      }
    }
    row_ends[shard + 1] = num_asked;
    activated[shard] = 0;
    for (int64_t route = first; route < next; ++route) {
      at[route] = int32_t(place[size_t(sorted[route] / top_k)]);
      activated[shard] += route == first || sorted_experts[route] != sorted_experts[route - 1];
    }
  }
  return 0;
}

}  // extern "C"
