// What others need of the routers' calls (routing.cpp says what each does).
#pragma once

#include <cstdint>

extern "C" {

void expertfleet_choose(int threads, const float* logits, const float* bias, int64_t num_tokens, int64_t num_experts, int64_t top_k,
                        int64_t groups, int64_t kept_groups, int normalise, float factor, int64_t* ids, float* weights);

int expertfleet_choose_replicas(const uint8_t* replicas, int64_t num_shards, int64_t stride, int64_t num_experts, const int64_t* experts,
                       int64_t num_routes, int64_t* owners);

int expertfleet_partition_routes(const int64_t* owners, int64_t num_experts, int64_t num_shards, const int64_t* experts,
                          const int64_t* routes, int64_t num_routes, int64_t top_k, int64_t num_rows, int64_t* sorted, int64_t* rows,
                          int64_t* route_ends, int64_t* row_ends, int64_t* activated, int32_t* sorted_experts, int32_t* at);

}  // extern "C"
