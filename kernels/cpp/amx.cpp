// AMX: Intel since Sapphire Rapids. Few rows go the way of AVX-512 with VNNI, more are multiplied in tiles.
#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "experts.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,amx-tile,amx-int8")

namespace expertfleet {
namespace {

constexpr int kMostRows = 16;
constexpr int kProductRows = 4, kProductOutputs = 6, kSingleOutputs = 12;  // as the registers allow
constexpr int kTileRowsFrom = 6;

#include "scalars.h"
#include "zmm.inc"

template <int kPlanes>
struct RowView;

template <int kPlanes>
void multiply_in_tiles(const uint8_t* tile, const Call& call, int64_t num_in, int taken, const RowView<kPlanes>* rows,
                       Floats (*out)[kBlocks]);

#define EXPERTFLEET_AMX
#include "products.inc"

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

thread_local int configured = 0;

// Tiles 0 and 1: digits [rows, 32] of both planes; 2 and 3: codes of two blocks [8, 64]; 4 to 7: sums [rows, 16].
void configure(int num_rows) {
  if (configured == num_rows) return;
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = i < 2 ? kGroup : 64;
    config.rows[i] = i == 2 || i == 3 ? kGroup / 4 : uint8_t(num_rows);
  }
  _tile_loadconfig(&config);
  configured = num_rows;
}

template <int kPlanes>
void multiply_in_tiles(const uint8_t* tile, const Call& call, int64_t num_in, int taken, const RowView<kPlanes>* rows,
                       Floats (*out)[kBlocks]) {
  static_assert(kPlanes == 2);
  configure(taken);
  alignas(64) int8_t digits[kMostRows][2 * kGroup];
  alignas(64) int8_t codes[2][2 * kWords][64];
  alignas(64) int32_t sums[4][kMostRows][kBlock];
  const __m512i eight = _mm512_set1_epi8(8);
  const int64_t num_scales = num_in / call.group_size, per_scale = call.group_size / kGroup;
  for (int m = 0; m < taken; ++m) for (int n = 0; n < kBlocks; ++n) out[m][n] = all(0.0f);
  int64_t group = 0;
  for (int64_t s = 0; s < num_scales; ++s) {
    const uint8_t* scales = tile;
    tile += kScaleBytes;
    for (int64_t inner = 0; inner < per_scale; ++inner, ++group, tile += kCodeBytes) {
      prefetch(tile);
      for (int m = 0; m < taken; ++m) {
        _mm512_store_si512(digits[m], load(rows[m].digits + group * 2 * kGroup));
      }
      _tile_loadd(0, digits[0], 2 * kGroup);
      _tile_loadd(1, digits[0] + kGroup, 2 * kGroup);
      UNROLL for (int pair = 0; pair < kBlocks; pair += 2) {
        UNROLL for (int n = 0; n < 2; ++n) UNROLL for (int word = 0; word < kWords; ++word) {
          const Ints words = load(tile + (pair + n) * kBlockBytes + word * kBlock * 4);
          _mm512_store_si512(codes[n][2 * word], _mm512_sub_epi8(low_codes(words), eight));
          _mm512_store_si512(codes[n][2 * word + 1], _mm512_sub_epi8(high_codes(words), eight));
        }
        _tile_loadd(2, codes[0], 64);
        _tile_loadd(3, codes[1], 64);
        _tile_zero(4);
        _tile_zero(5);
        _tile_zero(6);
        _tile_zero(7);
        _tile_dpbssd(4, 0, 2);
        _tile_dpbssd(5, 1, 2);
        _tile_dpbssd(6, 0, 3);
        _tile_dpbssd(7, 1, 3);
        _tile_stored(4, sums[0], 64);
        _tile_stored(5, sums[1], 64);
        _tile_stored(6, sums[2], 64);
        _tile_stored(7, sums[3], 64);
        const Floats scale[2] = {load_bf16(scales + pair * kBlock * 2), load_bf16(scales + (pair + 1) * kBlock * 2)};
        for (int m = 0; m < taken; ++m) {
          const Floats step = all(rows[m].steps[group]);
          UNROLL for (int n = 0; n < 2; ++n) {
            const Ints both[2] = {load(sums[2 * n][m]), load(sums[2 * n + 1][m])};
            out[m][pair + n] = fma(joined<2>(both), mul(scale[n], step), out[m][pair + n]);
          }
        }
      }
    }
  }
}

// The kernel hands out the tiles' registers on request, once per process.
bool supported() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return kAvx512.supported() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
void begin() { configured = 0; }
void end() {
  if (configured) _tile_release();
  configured = 0;
}

}  // namespace

const InstructionSet kAmx = {"amx_int8", supported, begin, end, read_row, gate_up, down, products, read};

}  // namespace expertfleet

TARGET_END

#endif
