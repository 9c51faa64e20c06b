// How the structures lie that Python mirrors (through ctypes), so that it can compare when it loads the library.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "lanes.h"

namespace expertfleet {
namespace {

// Each structure, and after it its fields in their order.
struct Layout {
  const char* name;
  char kind;  // s for a structure, p pointer, f floating-point number, i signed and u unsigned integer; of an array its elements'
  size_t offset, size;
};

template <class Field>
constexpr char kind_of() {
  using T = std::remove_all_extents_t<Field>;
  if (std::is_pointer_v<T>) return 'p';
  if (std::is_floating_point_v<T>) return 'f';
  if (std::is_class_v<T>) return 's';
  return std::is_signed_v<T> ? 'i' : 'u';
}

#define STRUCTURE(T) {#T, 's', 0, sizeof(T)}
#define FIELD(T, field) {#T "." #field, kind_of<decltype(T::field)>(), offsetof(T, field), sizeof(T::field)}

constexpr Layout kLayouts[] = {
    STRUCTURE(AdmissionFilter),
    FIELD(AdmissionFilter, fingerprint),
    FIELD(AdmissionFilter, min_epoch),
    FIELD(AdmissionFilter, newest_epoch),
    FIELD(AdmissionFilter, held),
    FIELD(AdmissionFilter, num_layers),
    FIELD(AdmissionFilter, num_experts),
    FIELD(AdmissionFilter, hidden),
    FIELD(AdmissionFilter, dtype),
    FIELD(AdmissionFilter, item_bytes),
    STRUCTURE(ShardEnd),
    FIELD(ShardEnd, socket),
    FIELD(ShardEnd, version),
    FIELD(ShardEnd, most_routes),
    FIELD(ShardEnd, filter),
    FIELD(ShardEnd, memory),
    FIELD(ShardEnd, memory_bytes),
    FIELD(ShardEnd, size),
    FIELD(ShardEnd, frame_id),
    FIELD(ShardEnd, layer),
    FIELD(ShardEnd, num_rows),
    FIELD(ShardEnd, num_routes),
    FIELD(ShardEnd, rows),
    FIELD(ShardEnd, route_rows),
    FIELD(ShardEnd, route_experts),
    FIELD(ShardEnd, results),
    STRUCTURE(Expected),
    FIELD(Expected, frame_id),
    FIELD(Expected, num_routes),
    FIELD(Expected, num_answered),
    FIELD(Expected, hidden),
    FIELD(Expected, row_bytes),
    FIELD(Expected, dtype),
    FIELD(Expected, results),
    FIELD(Expected, routes),
    FIELD(Expected, places),
    STRUCTURE(Came),
    FIELD(Came, frame_id),
    FIELD(Came, first),
    FIELD(Came, count),
    STRUCTURE(WorkerEnd),
    FIELD(WorkerEnd, socket),
    FIELD(WorkerEnd, version),
    FIELD(WorkerEnd, clear),
    FIELD(WorkerEnd, most_frame_bytes),
    FIELD(WorkerEnd, most_answer_bytes),
    FIELD(WorkerEnd, seconds_per_expert),
    FIELD(WorkerEnd, memory),
    FIELD(WorkerEnd, area),
    FIELD(WorkerEnd, area_bytes),
    FIELD(WorkerEnd, body),
    FIELD(WorkerEnd, body_left),
    FIELD(WorkerEnd, under_way),
    FIELD(WorkerEnd, num_came),
    FIELD(WorkerEnd, came),
    FIELD(WorkerEnd, num_expected),
    FIELD(WorkerEnd, expected),
    STRUCTURE(FanoutArgs),
    FIELD(FanoutArgs, fingerprint),
    FIELD(FanoutArgs, epoch),
    FIELD(FanoutArgs, num_shards),
    FIELD(FanoutArgs, ends),
    FIELD(FanoutArgs, num_experts),
    FIELD(FanoutArgs, replicas),
    FIELD(FanoutArgs, stride),
    FIELD(FanoutArgs, owners),
    FIELD(FanoutArgs, layer),
    FIELD(FanoutArgs, priority),
    FIELD(FanoutArgs, timeout_us),
    FIELD(FanoutArgs, x),
    FIELD(FanoutArgs, num_rows),
    FIELD(FanoutArgs, hidden),
    FIELD(FanoutArgs, row_bytes),
    FIELD(FanoutArgs, dtype),
    FIELD(FanoutArgs, top_k),
    FIELD(FanoutArgs, experts),
    FIELD(FanoutArgs, frame_id),
    FIELD(FanoutArgs, told),
};

#undef STRUCTURE
#undef FIELD

constexpr int64_t kNumLayouts = sizeof kLayouts / sizeof kLayouts[0];

// Whether every structure's fields follow each other from its beginning to its end: then none was forgotten.
constexpr bool are_whole() {
  size_t at = 0, end = 0;
  for (const Layout& layout : kLayouts) {
    bool is_field = false;
    for (const char* letter = layout.name; *letter; ++letter) is_field |= *letter == '.';
    if (is_field ? layout.offset != at : at != end) return false;
    at = is_field ? at + layout.size : 0;
    end = is_field ? end : layout.size;
  }
  return at == end;
}

static_assert(are_whole(), "kLayouts lacks a field, has them in another order, or a structure has a gap");

}  // namespace
}  // namespace expertfleet

using namespace expertfleet;

extern "C" {

// The name, kind, offset and size of a structure or field that Python mirrors; nullptr after the last.
const char* expertfleet_layout(int64_t index, char* kind, int64_t* offset, int64_t* size) {
  if (index >= kNumLayouts) return nullptr;
  const Layout& layout = kLayouts[index];
  *kind = layout.kind;
  *offset = int64_t(layout.offset);
  *size = int64_t(layout.size);
  return layout.name;
}

}  // extern "C"
