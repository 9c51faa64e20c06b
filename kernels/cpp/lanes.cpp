// What both ends of lanes do with most frames (through ctypes), where for Python each field is an object and each address a call.
// proto/codec.py says what frames are. One that is unusual in any way is left to Python as it came: nothing here says what is
// wrong with a frame, and nothing is let in that Python would refuse. The callers hold Python's lock.

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "routing.h"

#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0
#endif

namespace expertfleet {
namespace {

constexpr char kMagic[4] = {'X', 'F', 'L', 'T'};
constexpr uint8_t kDispatch = 2, kResult = 3, kDispatchShm = 6, kResultShm = 7;
constexpr int64_t kAlignment = 64;             // of rows in shared memory
constexpr int64_t kNothing = -1, kHandled = -2;  // instead of a size; an error is kHandled - errno

struct Prefix {
  char magic[4];
  uint8_t version, kind;
  uint16_t zero;
  uint64_t frame_id;
};

struct Asked {
  uint64_t fingerprint, incarnation, counter;
  uint16_t layer;
  uint8_t dtype, priority;
  uint32_t timeout_us, num_rows, num_routes, hidden, zero;
};

struct Places {
  uint64_t rows_at, results_at;
};

struct ResultShm {
  uint32_t first, count, num_routes, zero;
};

struct Result {
  uint32_t first, count, num_routes, hidden;
  uint8_t dtype, zero[7];
};

static_assert(sizeof(Prefix) == 16 && sizeof(Asked) == 48 && sizeof(Places) == 16, "as in proto/");
static_assert(sizeof(ResultShm) == 16 && sizeof(Result) == 24, "as in proto/");

template <class T>
T read_at(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

Prefix prefix_of(int64_t version, uint8_t kind, uint64_t frame_id) {
  Prefix prefix = {{}, uint8_t(version), kind, 0, frame_id};
  std::memcpy(prefix.magic, kMagic, sizeof kMagic);
  return prefix;
}

bool is_of(const Prefix& prefix, int64_t version, uint8_t kind) {
  return !std::memcmp(prefix.magic, kMagic, sizeof kMagic) && prefix.version == version && prefix.kind == kind && !prefix.zero;
}

// The size of what came, kNothing, or an error.
int64_t receive(int64_t socket, uint8_t* to, int64_t room) {
  ssize_t size;
  do size = recv(int(socket), to, size_t(room), MSG_DONTWAIT);
  while (size < 0 && errno == EINTR);
  if (size >= 0) return size;
  return errno == EAGAIN || errno == EWOULDBLOCK ? kNothing : kHandled - errno;
}

// How much of the parts the kernel did not take, or an error.
int64_t send_parts(int64_t socket, iovec* parts, int count) {
  int64_t left = 0;
  for (int i = 0; i < count; ++i) left += int64_t(parts[i].iov_len);
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = decltype(message.msg_iovlen)(count);
  ssize_t sent;
  do sent = sendmsg(int(socket), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent >= 0) return left - sent;
  return errno == EAGAIN || errno == EWOULDBLOCK ? left : kHandled - errno;
}

inline bool is_older(const uint64_t* epoch, const uint64_t* other) {
  return epoch[0] != other[0] ? epoch[0] < other[0] : epoch[1] < other[1];
}

bool lets_in(const ShardEnd& end, const uint8_t* frame, int64_t size, Asked* asked) {
  const int64_t fixed = int64_t(sizeof(Prefix) + sizeof(Asked));
  if (size < fixed) return false;
  if (!is_of(read_at<Prefix>(frame), end.version, end.memory ? kDispatchShm : kDispatch)) return false;
  *asked = read_at<Asked>(frame + sizeof(Prefix));
  const AdmissionFilter& filter = *end.filter;
  const uint64_t epoch[2] = {asked->incarnation, asked->counter};
  return asked->fingerprint == filter.fingerprint && !is_older(epoch, filter.min_epoch) && asked->layer < filter.num_layers &&
         asked->dtype == filter.dtype && asked->hidden == filter.hidden && asked->timeout_us && asked->num_routes &&
         asked->num_routes <= end.most_routes && asked->num_rows && asked->num_rows <= asked->num_routes;
}

// Whether the routes, which end the frame, name rows that there are and experts that are held.
bool are_held(const AdmissionFilter& filter, const Asked& asked, const uint8_t* routes) {
  const uint8_t* held = filter.held + asked.layer * filter.num_experts;
  for (uint32_t i = 0; i < asked.num_routes; ++i) {
    const uint32_t row = read_at<uint32_t>(routes + 4 * i), expert = read_at<uint32_t>(routes + 4 * (asked.num_routes + i));
    if (row >= asked.num_rows || expert >= filter.num_experts || !held[expert]) return false;
  }
  return true;
}

// Whether the frame takes the fast path; then `end` says what it asks.
bool take(ShardEnd* end, uint8_t* frame, int64_t size) {
  Asked asked;
  if (!lets_in(*end, frame, size, &asked)) return false;
  AdmissionFilter* filter = end->filter;
  const int64_t row_bytes = filter->hidden * filter->item_bytes, routes_bytes = 8 * int64_t(asked.num_routes);
  const uint8_t* after = frame + sizeof(Prefix) + sizeof(Asked);
  const uint8_t* routes;
  if (end->memory) {
    routes = after + sizeof(Places);
    if (size != routes - frame + routes_bytes) return false;
    const Places places = read_at<Places>(after);
    const uint64_t bytes = uint64_t(end->memory_bytes);
    if (places.rows_at % kAlignment || places.rows_at > bytes || asked.num_rows * row_bytes > int64_t(bytes - places.rows_at)) return false;
    if (places.results_at % kAlignment || places.results_at > bytes ||
        asked.num_routes * row_bytes > int64_t(bytes - places.results_at)) return false;
    end->rows = end->memory + places.rows_at;
    end->results = end->memory + places.results_at;
  } else {
    routes = after + asked.num_rows * row_bytes;
    if (size != routes - frame + routes_bytes) return false;
    end->rows = after;
    end->results = nullptr;
  }
  if (!are_held(*filter, asked, routes)) return false;
  end->size = size;
  end->frame_id = read_at<Prefix>(frame).frame_id;
  end->layer = asked.layer;
  end->num_rows = asked.num_rows;
  end->num_routes = asked.num_routes;
  end->route_rows = routes;
  end->route_experts = routes + routes_bytes / 2;
  const uint64_t epoch[2] = {asked.incarnation, asked.counter};
  if (is_older(filter->newest_epoch, epoch)) std::memcpy(filter->newest_epoch, epoch, sizeof epoch);
  return true;
}

bool take_result_shm(WorkerEnd* end, const uint8_t* frame, int64_t size) {
  if (size != int64_t(sizeof(Prefix) + sizeof(ResultShm))) return false;
  const Prefix prefix = read_at<Prefix>(frame);
  if (!is_of(prefix, end->version, kResultShm)) return false;
  const ResultShm filled = read_at<ResultShm>(frame + sizeof prefix);
  if (!end->fits(end->find(prefix.frame_id), filled.first, filled.count, filled.num_routes)) return false;
  end->arrived({prefix.frame_id, filled.first, filled.count});
  return true;
}

// How much of `size` bytes was taken: a whole RESULT, or what has come of it. 0 for another frame, or where its beginning is not here.
int64_t take_result(WorkerEnd* end, const uint8_t* bytes, int64_t size) {
  constexpr int64_t kHead = sizeof(uint64_t) + sizeof(Prefix) + sizeof(Result);
  if (size < kHead) return 0;
  const Prefix prefix = read_at<Prefix>(bytes + sizeof(uint64_t));
  if (!is_of(prefix, end->version, kResult)) return 0;
  const Result result = read_at<Result>(bytes + sizeof(uint64_t) + sizeof prefix);
  const Expected* found = end->find(prefix.frame_id);
  if (!end->fits(found, result.first, result.count, result.num_routes)) return 0;
  if (result.hidden != found->hidden || result.dtype != found->dtype) return 0;
  const int64_t all = int64_t(result.count) * found->row_bytes, here = std::min(all, size - kHead);
  if (read_at<uint64_t>(bytes) != uint64_t(kHead - int64_t(sizeof(uint64_t)) + all)) return 0;
  uint8_t* to = found->results + result.first * found->row_bytes;
  std::memcpy(to, bytes + kHead, size_t(here));
  end->under_way = {prefix.frame_id, result.first, result.count};
  if (here == all) {
    end->arrived(end->under_way);
  } else {
    end->body = to + here;
    end->body_left = all - here;
  }
  return kHead + here;
}

struct Told {
  int64_t *routes, *rows;
  int32_t *experts, *places;
  int64_t *route_ends, *row_ends, *activated, *order, *left;

  Told(int64_t* told, int64_t num_routes, int64_t num_shards)
      : routes(told), rows(routes + num_routes), experts(reinterpret_cast<int32_t*>(rows + num_routes)), places(experts + num_routes),
        route_ends(rows + 2 * num_routes), row_ends(route_ends + num_shards + 1), activated(row_ends + num_shards + 1),
        order(activated + num_shards), left(order + num_shards) {}
};

// Sends one shard its frame; what the kernel did not take of it, or -1 where Python has to send it.
int64_t ask_one(const FanoutArgs& ask, const Told& told, int64_t shard, uint64_t frame_id) {
  WorkerEnd* end = ask.ends[shard];
  const int64_t first = told.route_ends[shard], num_routes = told.route_ends[shard + 1] - first;
  const int64_t* rows = told.rows + told.row_ends[shard];
  const int64_t num_rows = told.row_ends[shard + 1] - told.row_ends[shard], row_bytes = ask.row_bytes;
  if (end->socket < 0 || !*end->clear || num_routes * row_bytes > end->most_answer_bytes) return -1;
  struct { uint64_t length; Prefix prefix; Asked asked; Places places; } head = {};
  head.prefix = prefix_of(end->version, end->memory ? kDispatchShm : kDispatch, frame_id);
  head.asked = {ask.fingerprint, ask.epoch[0], ask.epoch[1], uint16_t(ask.layer), uint8_t(ask.dtype), uint8_t(ask.priority),
                uint32_t(ask.timeout_us), uint32_t(num_rows), uint32_t(num_routes), uint32_t(ask.hidden), 0};
  std::vector<iovec> parts;
  parts.reserve(size_t(end->memory ? 3 : num_rows + 3));
  if (end->memory) {
    const int64_t rows_bytes = (num_rows * row_bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rows_bytes + num_routes * row_bytes > end->area_bytes) return -1;
    head.places = {uint64_t(end->area), uint64_t(end->area + rows_bytes)};
    for (int64_t i = 0; i < num_rows; ++i) {
      std::memcpy(end->memory + end->area + i * row_bytes, ask.x + rows[i] * row_bytes, size_t(row_bytes));
    }
    parts.push_back({&head.prefix, sizeof head - sizeof head.length});
  } else {
    head.length = sizeof(Prefix) + sizeof(Asked) + uint64_t(num_rows * row_bytes + 8 * num_routes);
    parts.push_back({&head, sizeof head - sizeof head.places});
    for (int64_t i = 0; i < num_rows; ++i) {
      const uint8_t* row = ask.x + rows[i] * row_bytes;
      if (i && rows[i] == rows[i - 1] + 1) parts.back().iov_len += size_t(row_bytes);
      else parts.push_back({const_cast<uint8_t*>(row), size_t(row_bytes)});
    }
  }
  parts.push_back({told.places + first, 4 * size_t(num_routes)});
  parts.push_back({told.experts + first, 4 * size_t(num_routes)});
  int64_t whole = 0;
  for (const iovec& part : parts) whole += int64_t(part.iov_len);
  if (whole > end->most_frame_bytes || parts.size() > kMostParts) return -1;
  const int64_t left = send_parts(end->socket, parts.data(), int(parts.size()));
  if (left < 0 || left == whole) return -1;
  end->area_bytes = 0;
  return left;
}

}  // namespace
}  // namespace expertfleet

using namespace expertfleet;

extern "C" {

// Reads a frame of a local lane to `buffer`. kHandled if it is one that may be computed at once and nothing waits behind it: then `end`
// says what it asks. Else its size, for Python to look at, 0 at the end of the connection, kNothing, or an error.
int64_t expertfleet_take_dispatch_shm(ShardEnd* end, uint8_t* buffer, int64_t room) {
  const int64_t size = receive(end->socket, buffer, room);
  if (size <= 0 || !take(end, buffer, size)) return size;
  const bool is_last = recv(int(end->socket), nullptr, 0, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC) < 0;
  return is_last ? kHandled : size;
}

// The same of a lane over TCP, where its length, u64, comes before the frame.
int64_t expertfleet_take_dispatch(ShardEnd* end, uint8_t* buffer, int64_t room) {
  const int64_t size = receive(end->socket, buffer, room), length = int64_t(sizeof(uint64_t));
  if (size <= length || size == room || read_at<uint64_t>(buffer) != uint64_t(size - length)) return size;
  return take(end, buffer + length, size - length) ? kHandled : size;
}

// Says that all results of what was asked are in their place: the bytes that the kernel did not take, or an error.
int64_t expertfleet_send_result_shm(const ShardEnd* end) {
  struct { Prefix prefix; ResultShm filled; } frame = {prefix_of(end->version, kResultShm, end->frame_id), {}};
  frame.filled.count = frame.filled.num_routes = uint32_t(end->num_routes);
  iovec part = {&frame, sizeof frame};
  return send_parts(end->socket, &part, 1);
}

// Sends all results of what was asked, [num_routes, hidden], after the frame's length: the bytes that the kernel did not take, or an error.
int64_t expertfleet_give_result(const ShardEnd* end, uint8_t* results) {
  const AdmissionFilter& filter = *end->filter;
  const int64_t bytes = end->num_routes * filter.hidden * filter.item_bytes;
  struct { uint64_t length; Prefix prefix; Result result; } head = {0, prefix_of(end->version, kResult, end->frame_id), {}};
  head.length = sizeof(Prefix) + sizeof(Result) + uint64_t(bytes);
  head.result.count = head.result.num_routes = uint32_t(end->num_routes);
  head.result.hidden = uint32_t(filter.hidden);
  head.result.dtype = uint8_t(filter.dtype);
  iovec parts[2] = {{&head, sizeof head}, {results, size_t(bytes)}};
  return send_parts(end->socket, parts, 2);
}

// Says who is asked what (as expertfleet_choose_replicas and expertfleet_partition_routes do) and sends it, to the shard first that will take longest.
// Returns how many are asked, or -1 for an expert that there is not.
int64_t expertfleet_ask(const FanoutArgs* ask) {
  const int64_t num_routes = ask->num_rows * ask->top_k, num_shards = ask->num_shards;
  const Told told(ask->told, num_routes, num_shards);
  thread_local std::vector<int64_t> chosen;
  const int64_t* owners = ask->owners;
  if (ask->replicas) {
    chosen.resize(size_t(ask->num_experts));
    if (expertfleet_choose_replicas(ask->replicas, num_shards, ask->stride, ask->num_experts, ask->experts, num_routes, chosen.data())) return -1;
    owners = chosen.data();
  }
  if (expertfleet_partition_routes(owners, ask->num_experts, num_shards, ask->experts, nullptr, num_routes, ask->top_k, ask->num_rows,
                            told.routes, told.rows, told.route_ends, told.row_ends, told.activated, told.experts, told.places)) return -1;
  int64_t num_asked = 0;
  for (int64_t shard = 0; shard < num_shards; ++shard) {
    if (told.route_ends[shard] < told.route_ends[shard + 1]) told.order[num_asked++] = shard;
  }
  std::stable_sort(told.order, told.order + num_asked, [&](int64_t a, int64_t b) {
    return double(told.activated[a]) * ask->ends[a]->seconds_per_expert > double(told.activated[b]) * ask->ends[b]->seconds_per_expert;
  });
  for (int64_t i = 0; i < num_asked; ++i) told.left[i] = ask_one(*ask, told, told.order[i], ask->frame_id + uint64_t(i));
  return num_asked;
}

// From now on answers to a frame take the fast path, until all have come or it is forgotten. 0 where too many are awaited.
int expertfleet_expect(WorkerEnd* end, uint64_t frame_id, int64_t num_routes, int64_t hidden, int64_t row_bytes, int64_t dtype,
                       uint8_t* results, const int64_t* routes, uintptr_t* places) {
  if (end->num_expected == kMostExpected) return 0;
  end->expected[end->num_expected++] = {frame_id, num_routes, 0, hidden, row_bytes, dtype, results, routes, places};
  return 1;
}

void expertfleet_forget(WorkerEnd* end, uint64_t frame_id) { end->forget(frame_id); }

// Reads what has come of a local lane and writes down where the answers are. The size of an unusual frame in `buffer`, 0 at the
// connection's end, kNothing, or an error; all that is in `came` came before. kHandled where there may be more.
int64_t expertfleet_take_result_shm(WorkerEnd* end, uint8_t* buffer, int64_t room) {
  end->num_came = 0;
  while (end->num_came < kMostCame) {
    const int64_t size = receive(end->socket, buffer, room);
    if (size <= 0 || !take_result_shm(end, buffer, size)) return size;
  }
  return kHandled;
}

// The same over TCP: the size of what begins with an unusual frame, or with one whose head has not come whole.
int64_t expertfleet_take_results(WorkerEnd* end, uint8_t* buffer, int64_t room) {
  end->num_came = 0;
  while (end->num_came < kMostCame) {
    if (end->body_left) {
      uint8_t* to = end->body ? end->body : buffer;
      const int64_t size = receive(end->socket, to, end->body ? end->body_left : std::min(end->body_left, room));
      if (size <= 0) return size;
      end->body += end->body ? size : 0;
      end->body_left -= size;
      if (!end->body_left && end->body) end->arrived(end->under_way);
      continue;
    }
    const int64_t size = receive(end->socket, buffer, room);
    if (size <= 0) return size;
    for (int64_t at = 0; at < size;) {
      const int64_t taken = end->num_came < kMostCame ? take_result(end, buffer + at, size - at) : 0;
      if (!taken) {
        std::memmove(buffer, buffer + at, size_t(size - at));
        return size - at;
      }
      at += taken;
    }
  }
  return kHandled;
}

}  // extern "C"
