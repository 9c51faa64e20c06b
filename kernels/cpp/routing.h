// What the experts' and the gate's calls need of the routers'.
#pragma once

#include <cstdint>

extern "C" {

void expertfleet_choose(int threads, const float* logits, const float* bias, int64_t num_tokens, int64_t num_experts, int64_t top_k,
                        int64_t groups, int64_t kept_groups, int normalise, float factor, int64_t* ids, float* weights);

}  // extern "C"
