// What Python calls (through ctypes): packing weights, the experts of one layer applied to routes, and exact products.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "experts.h"
#include "pool.h"
#include "routing.h"

namespace expertfleet {
namespace {

#if defined(__x86_64__) && defined(__linux__)
const InstructionSet* const kKnown[] = {&kAmx, &kAvx512, &kAvx2};
#else
const InstructionSet* const kKnown[] = {nullptr};
#endif

const InstructionSet* find(const char* name) {
  for (const InstructionSet* set : kKnown) {
    if (set && std::strcmp(set->name, name) == 0) return set;
  }
  return nullptr;
}

// Memory that grows and is kept for the next call, aligned to cache lines.
class Space {
 public:
  template <class T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(64, bytes);
      size_ = memory_ ? bytes : 0;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

struct Spaces {
  Space digits[2], steps[2], corrections[2];

  bool rows(int which, int64_t count, int64_t width, int planes, Rows* rows) {
    const size_t groups = size_t(width / kGroup), total = size_t(count) * groups;
    *rows = {digits[which].take<int8_t>(total * kGroup * planes), steps[which].take<float>(total),
             corrections[which].take<int32_t>(total * (planes - 1)), int64_t(groups)};
    return rows->digits && rows->steps && rows->corrections;
  }
};

// The words of 4 outputs times 4 inputs' words, transposed.
inline void transpose(const uint32_t* from, int64_t stride, uint32_t* to) {
#if defined(__SSE2__)
  const auto row = [&](int64_t j) { return _mm_loadu_ps(reinterpret_cast<const float*>(from + j * stride)); };
  __m128 rows[4] = {row(0), row(1), row(2), row(3)};
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  for (int i = 0; i < kWords; ++i) _mm_storeu_ps(reinterpret_cast<float*>(to + i * kBlock), rows[i]);
#else
  for (int j = 0; j < 4; ++j) for (int i = 0; i < kWords; ++i) to[i * kBlock + j] = from[j * stride + i];
#endif
}

// One block of 16 outputs, all inputs: words [16, in / 8] and scales [16, groups] to their places in a tile.
void pack_block(const uint32_t* words, const uint16_t* scales, int64_t num_in, int64_t group_size, int block,
                uint8_t* tile) {
  const int64_t num_words = num_in / 8, num_scales = num_in / group_size, words_per_scale = group_size / 8;
  for (int64_t s = 0; s < num_scales; ++s) {
    uint16_t* scale_to = reinterpret_cast<uint16_t*>(tile) + block * kBlock;
    for (int64_t j = 0; j < kBlock; ++j) scale_to[j] = scales[j * num_scales + s];
    tile += kScaleBytes;
    for (int64_t w = 0; w < words_per_scale; w += kWords, tile += kCodeBytes) {
      uint32_t* code_to = reinterpret_cast<uint32_t*>(tile + block * kBlockBytes);
      for (int64_t j = 0; j < kBlock; j += 4) {
        transpose(words + j * num_words + s * words_per_scale + w, num_words, code_to + j);
      }
    }
  }
}

// The same for a block of no outputs: zeros.
void fill_block(int64_t num_in, int64_t group_size, int block, uint8_t* tile) {
  for (int64_t s = 0; s < num_in / group_size; ++s) {
    std::memset(tile + block * kBlock * 2, 0, kBlock * 2);
    tile += kScaleBytes;
    for (int64_t w = 0; w < group_size / kGroup; ++w, tile += kCodeBytes) {
      std::memset(tile + block * kBlockBytes, 0x88, kBlockBytes);
    }
  }
}

void compute(const InstructionSet& set, const Call& call, const std::vector<Segment>& segments, int threads) {
  const int64_t gate_up_tiles = call.width / kGateUpOutputs;
  const int64_t down_tiles = (call.hidden + kDownOutputs - 1) / kDownOutputs;
  const int64_t num_segments = int64_t(segments.size());
  Barrier barrier(threads);
  Items rows(call.num_rows, threads), gate_ups(num_segments * gate_up_tiles, threads);
  Items downs(num_segments * down_tiles, threads);
  run_on_threads(threads, [&](int) {
    set.begin();
    rows.each([&](int64_t row) { set.read_row(call, row); });
    barrier.wait();
    gate_ups.each([&](int64_t item) { set.gate_up(call, segments[size_t(item / gate_up_tiles)], item % gate_up_tiles); });
    barrier.wait();
    downs.each([&](int64_t item) { set.down(call, segments[size_t(item / down_tiles)], item % down_tiles); });
    set.end();
  });
}

}  // namespace
}  // namespace expertfleet

using namespace expertfleet;

extern "C" {

// The instruction sets that this processor has, best first; nullptr after the last.
const char* expertfleet_instruction_set(int index) {
  for (const InstructionSet* set : kKnown) {
    if (set && set->supported() && index-- == 0) return set->name;
  }
  return nullptr;
}

int64_t expertfleet_tile_bytes(int64_t num_in, int64_t group_size) { return int64_t(tile_bytes(num_in, group_size)); }

// gate and up, both [width, hidden], to width / 32 tiles.
void expertfleet_pack_gate_up(const uint32_t* gate_words, const uint16_t* gate_scales, const uint32_t* up_words,
                              const uint16_t* up_scales, int64_t width, int64_t hidden, int64_t group_size,
                              uint8_t* to) {
  const int64_t bytes = int64_t(tile_bytes(hidden, group_size)), num_words = hidden / 8, num_scales = hidden / group_size;
  for (int64_t start = 0; start < width; start += kGateUpOutputs, to += bytes) {
    for (int block = 0; block < kBlocks; ++block) {
      const int64_t first = start + block % 2 * kBlock;
      const uint32_t* words = (block < 2 ? gate_words : up_words) + first * num_words;
      const uint16_t* scales = (block < 2 ? gate_scales : up_scales) + first * num_scales;
      pack_block(words, scales, hidden, group_size, block, to);
    }
  }
}

// down [hidden, width] to ceil(hidden / 64) tiles; missing outputs are filled with zeros.
void expertfleet_pack_down(const uint32_t* words, const uint16_t* scales, int64_t hidden, int64_t width,
                           int64_t group_size, uint8_t* to) {
  const int64_t bytes = int64_t(tile_bytes(width, group_size));
  for (int64_t start = 0; start < hidden; start += kDownOutputs, to += bytes) {
    for (int block = 0; block < kBlocks; ++block) {
      const int64_t first = start + block * kBlock;
      if (first < hidden) {
        pack_block(words + first * (width / 8), scales + first * (width / group_size), width, group_size, block, to);
      } else {
        fill_block(width, group_size, block, to);
      }
    }
  }
}

// x [rows, hidden] and out [routes, hidden] in float32 or bf16. Route i applies expert experts[i], whose tiles are at gate_up[expert]
// and down[expert], null for one that is not held, to row route_rows[i].
// 0, or 1 if the instruction set is not there, 2 if memory is not, 3 for a route of a row that there is not, 4 of such an expert.
int expertfleet_apply_experts(const char* instruction_set, int threads, int float32, const void* x, int64_t num_rows,
                      int64_t hidden, int64_t width, int64_t group_size, int64_t num_routes, const int32_t* route_rows,
                      const int32_t* experts, int64_t num_experts, const uint8_t* const* gate_up, const uint8_t* const* down,
                      void* out) {
  const InstructionSet* chosen = find(instruction_set);
  if (!chosen) return 1;
  std::vector<int64_t> starts(size_t(num_experts) + 1), rows(static_cast<size_t>(num_routes)), places(rows.size());
  for (int64_t i = 0; i < num_routes; ++i) {
    if (route_rows[i] < 0 || route_rows[i] >= num_rows) return 3;
    if (experts[i] < 0 || experts[i] >= num_experts || !gate_up[experts[i]]) return 4;
    ++starts[size_t(experts[i]) + 1];
  }
  std::vector<Segment> segments;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t count = starts[size_t(expert) + 1];
    if (count) segments.push_back({gate_up[expert], down[expert], starts[size_t(expert)], count});
    starts[size_t(expert) + 1] += starts[size_t(expert)];
  }
  for (int64_t i = 0; i < num_routes; ++i) {
    const size_t at = size_t(starts[size_t(experts[i])]++);
    rows[at] = route_rows[i];
    places[at] = i;
  }
  thread_local Spaces spaces;
  const int planes = float32 ? 3 : 2;
  Call call = {x, out, float32 != 0, num_rows, hidden, width, group_size, rows.data(), places.data(), {}, {}};
  if (!spaces.rows(0, num_rows, hidden, planes, &call.inputs)) return 2;
  if (!spaces.rows(1, num_routes, width, planes, &call.inner)) return 2;
  compute(*chosen, call, segments, threads);
  return 0;
}

// out [rows, heads, out] (float32 or bf16) = x [rows, heads, in] (float32 or bf16) times the bf16 weight [heads, out, in];
// `num_in` is a multiple of 16. 0, or 1 if the instruction set is not there.
int expertfleet_multiply(const char* instruction_set, int threads, int float32, const void* x, int64_t num_rows,
                         int64_t heads, const uint16_t* weight, int64_t num_in, int64_t num_out, int float32_out,
                         void* out) {
  const InstructionSet* chosen = find(instruction_set);
  if (!chosen) return 1;
  const Product product = {x, weight, out, float32 != 0, float32_out != 0, num_rows, heads, num_in, num_out};
  Items items(product.num_items(), threads);
  run_on_threads(threads, [&](int) { items.each([&](int64_t item) { chosen->products(product, item); }); });
  return 0;
}

// The whole gate: x [rows, in] (float32 or bf16) times the bf16 weight [experts, in], and expertfleet_choose of that.
// 0, 1 if the instruction set is not there, or 2 if memory is not.
int expertfleet_gate(const char* instruction_set, int product_threads, int choice_threads, int float32, const void* x, int64_t num_rows,
                     const uint16_t* weight, int64_t num_in, int64_t num_experts, const float* bias, int64_t top_k, int64_t groups,
                     int64_t kept_groups, int normalise, float factor, int64_t* ids, float* weights) {
  if (!num_rows) return 0;
  thread_local Space space;
  float* logits = space.take<float>(size_t(num_rows * num_experts));
  if (!logits) return 2;
  if (expertfleet_multiply(instruction_set, product_threads, float32, x, num_rows, 1, weight, num_in, num_experts, 1, logits)) return 1;
  expertfleet_choose(choice_threads, logits, bias, num_rows, num_experts, top_k, groups, kept_groups, normalise, factor, ids, weights);
  return 0;
}

// From now on each thread of a call keeps to one of these processors.
void expertfleet_pin(const int* cpus, int count) { pin_threads(cpus, count); }

// Reads memory on so many threads and returns something that depends on it; -1 if the instruction set is not there.
int64_t expertfleet_read(const char* instruction_set, int threads, const uint8_t* memory, int64_t bytes) {
  const InstructionSet* chosen = find(instruction_set);
  if (!chosen) return -1;
  const int64_t each = bytes / threads / 256 * 256;
  int64_t sum = 0;
  run_on_threads(threads, [&](int share) {
    __atomic_fetch_add(&sum, int64_t(chosen->read(memory + share * each, each) >> 1), __ATOMIC_RELAXED);
  });
  return sum;
}

// Asks for large pages where they are to be had: fewer address translations while weights stream by.
void expertfleet_advise(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t start = (uintptr_t(memory) + page - 1) / page * page, stop = (uintptr_t(memory) + uintptr_t(bytes)) / page * page;
  if (stop > start) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

}  // extern "C"
