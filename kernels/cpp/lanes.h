// What Python and the calls of lanes.cpp share: kernels/native_lanes.py mirrors these structures, and layouts.cpp says how they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace expertfleet {

// What a shard lets in (expert_workers/expert_store.py).
struct AdmissionFilter {
  uint64_t fingerprint, min_epoch[2], newest_epoch[2];
  const uint8_t* held;  // [layers, experts]
  int64_t num_layers, num_experts, hidden, dtype, item_bytes;
};

// A shard's end of a lane.
struct ShardEnd {
  int64_t socket, version, most_routes;
  AdmissionFilter* filter;
  uint8_t* memory;  // shared with the worker; null where rows come with their frames
  int64_t memory_bytes;
  // What is asked, once a fast-path frame has come, of so many bytes.
  int64_t size;
  uint64_t frame_id;
  int64_t layer, num_rows, num_routes;
  const uint8_t *rows, *route_rows, *route_experts;
  uint8_t* results;  // where they belong; null where they are sent
};

// A frame whose answers are awaited.
struct Expected {
  uint64_t frame_id;
  int64_t num_routes, num_answered, hidden, row_bytes, dtype;
  uint8_t* results;       // [num_routes, hidden]: where they are, or are put
  const int64_t* routes;  // whose address goes to places[routes[i]]
  uintptr_t* places;
};

// Answers to routes `first` to `first + count` of a frame.
struct Came {
  uint64_t frame_id;
  int64_t first, count;
};

constexpr int64_t kMostExpected = 32, kMostCame = 16;
constexpr size_t kMostParts = 512;  // of a frame

// A worker's end of a lane.
struct WorkerEnd {
  int64_t socket, version;  // socket -1 while the fast path is closed
  const int64_t* clear;     // not 0 while nothing waits to be sent before
  int64_t most_frame_bytes, most_answer_bytes;
  double seconds_per_expert;  // what the shard took of late
  // Of a local lane: the shared memory, and the stretch of it that the next frame may take, which that empties.
  uint8_t* memory;
  int64_t area, area_bytes;
  // Over TCP: the results that come now; what is not awaited any more goes nowhere.
  uint8_t* body;
  int64_t body_left;
  Came under_way;
  // What has come: of each the frame, the first route and how many routes.
  int64_t num_came;
  int64_t came[3 * kMostCame];
  int64_t num_expected;
  Expected expected[kMostExpected];

  Expected* find(uint64_t frame_id) {
    for (int64_t i = 0; i < num_expected; ++i) {
      if (expected[i].frame_id == frame_id) return expected + i;
    }
    return nullptr;
  }

  void forget(uint64_t frame_id) {
    if (Expected* found = find(frame_id)) *found = expected[--num_expected];
    if (body_left && under_way.frame_id == frame_id) body = nullptr;
  }

  // Whether these are the next ones of the frame.
  bool fits(const Expected* found, int64_t first, int64_t count, int64_t num_routes) const {
    return found && count && num_routes == found->num_routes && first == found->num_answered && count <= num_routes - first;
  }

  // Answers are where they belong.
  void arrived(const Came& answers) {
    Expected* found = find(answers.frame_id);
    if (!found) return;
    const uint8_t* row = found->results + answers.first * found->row_bytes;
    for (int64_t i = answers.first; i < answers.first + answers.count; ++i, row += found->row_bytes) {
      found->places[found->routes[i]] = uintptr_t(row);
    }
    found->num_answered += answers.count;
    const int64_t told[3] = {int64_t(answers.frame_id), answers.first, answers.count};
    std::memcpy(came + 3 * num_came++, told, sizeof told);
    if (found->num_answered == found->num_routes) forget(answers.frame_id);
  }
};

// A layer's question to all shards, and what came of it.
struct FanoutArgs {
  uint64_t fingerprint, epoch[2];
  int64_t num_shards;
  WorkerEnd* const* ends;
  int64_t num_experts;
  const uint8_t* replicas;  // [shards, `stride`], or null: then
  int64_t stride;
  const int64_t* owners;  // [experts]
  int64_t layer, priority, timeout_us;
  const uint8_t* x;  // [num_rows, hidden]
  int64_t num_rows, hidden, row_bytes, dtype, top_k;
  const int64_t* experts;  // [num_rows, top_k]
  uint64_t frame_id;       // of the shard that is asked first; the others' follow
  // Written: as expertfleet_partition_routes does, then, in the order in which they are asked, num_shards shards and what the kernel did not
  // take of their frames: -1 for one that was not sent.
  int64_t* told;
};

}  // namespace expertfleet
