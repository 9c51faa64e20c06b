// What the parts of the CPU expert kernel share: the layout of weights and rows in memory, and one call's data.
//
// A weight is stored in tiles of 64 outputs, four blocks of 16. A tile holds, for every scale group along the inputs, the
// four blocks' scales (bf16, 4 x 16) and then, for every 32 inputs, the four blocks' codes (4 x 256 bytes). In a block's
// codes the checkpoint's own words lie transposed: 16 outputs side by side, one 32-bit word (8 inputs) of each.
// A gate-up tile holds gate outputs 32 t .. 32 t + 31 in blocks 0 and 1, and the same outputs of up in blocks 2 and 3.
//
// A row is stored as integers: per 32 inputs a step (a power of two) and `planes` signed digits to base 256 of
// round(x / step), the most significant plane first. Within a plane the inputs of a word are ordered 0 2 4 6 1 3 5 7,
// which is how masking the words' bytes delivers the codes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace expertfleet {

constexpr int kBlock = 16;
constexpr int kBlocks = 4;
constexpr int kGroup = 32;  // inputs per step of a row
constexpr int kWords = kGroup / 8;
constexpr int kBlockBytes = kWords * kBlock * 4;
constexpr int kCodeBytes = kBlocks * kBlockBytes;
constexpr int kScaleBytes = kBlocks * kBlock * 2;
constexpr int kGateUpOutputs = 2 * kBlock;
constexpr int kDownOutputs = kBlocks * kBlock;

inline size_t tile_bytes(int64_t num_in, int64_t group_size) {
  return size_t(num_in / group_size) * kScaleBytes + size_t(num_in / kGroup) * kCodeBytes;
}

// Rows of one width as integers. corrections are -8 times the sums of the digits' values, which turns products with
// codes 0..15 into products with codes -8..7: one per group for two planes, two (upper planes, last plane) for three.
struct Rows {
  int8_t* digits;
  float* steps;
  int32_t* corrections;
  int64_t num_groups;
};

// The routes of one expert: they lie side by side in the order of computing.
struct Segment {
  const uint8_t* gate_up;
  const uint8_t* down;
  int64_t first;
  int64_t count;
};

struct Call {
  const void* x;
  void* out;
  bool float32;  // x and out; otherwise bf16, and rows have two planes instead of three
  int64_t num_rows, hidden, width, group_size;
  const int64_t* rows;    // of every route, in the order of computing
  const int64_t* places;  // where its result goes
  Rows inputs;
  Rows inner;
};

constexpr int kOutputsTogether = 24;    // whose weights stay in the first cache while rows pass by, for as many
constexpr int kInputsTogether = 1024;  // inputs at once

// out[row][head] = x[row][head] times weight[head], for every head. An item is a head and kOutputsTogether of its outputs.
struct Product {
  const void* x;           // [rows, heads, in], float32 or bf16
  const uint16_t* weight;  // [heads, out, in] bf16
  void* out;               // [rows, heads, out], float32 or bf16
  bool float32, float32_out;
  int64_t num_rows, heads, num_in, num_out;

  int64_t num_items() const { return heads * ((num_out + kOutputsTogether - 1) / kOutputsTogether); }
};

struct InstructionSet {
  const char* name;
  bool (*supported)();
  void (*begin)();  // on every thread before, and
  void (*end)();    // after its share of a call
  void (*read_row)(const Call&, int64_t row);
  void (*gate_up)(const Call&, const Segment&, int64_t tile);
  void (*down)(const Call&, const Segment&, int64_t tile);
  void (*products)(const Product&, int64_t item);
  uint64_t (*read)(const uint8_t* memory, int64_t bytes);  // a sum of all, for benchmarks: how fast memory is
};

extern const InstructionSet kAvx2, kAvx512, kAmx;

}  // namespace expertfleet
