// The inner loops over rows of pixels, for the best instruction set that this CPU has: compiled three times, chosen once.
#ifndef FASTICH_ROWS_H_
#define FASTICH_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define FASTICH_X86 1
#endif

namespace {

// One window with its normalisation: out = clip((hu - low) * inverse_width, 0, 1) * inverse_std + shift.
struct Channel {
  float low, inverse_width, inverse_std, shift;
};

// Where an affine map takes an output row's pixels from; `pixels` has a border of one air pixel on every side.
struct WarpSource {
  const uint16_t *pixels;
  uint32_t height, width;  // without the border
  const float *matrix;     // 2 x 3, output to input, pixels with centres at +0.5
};

// Room for one row of the warp, [width] each.
struct WarpRow {
  int32_t *at;
  float *fx, *fy;
  uint32_t *top, *bottom;
  float *out;
};

// The pixel at[x] with its right neighbour to top[x], and those one pitch below to bottom[x]. Compiled once, for the plain
// x86-64, on purpose: gather instructions are slower than loads (bench/LOG.md).
inline __attribute__((noinline)) void pick_squares(const uint16_t *pixels, size_t pitch, const int32_t *__restrict at,
                                                   uint32_t count, uint32_t *__restrict top, uint32_t *__restrict bottom) {
  for (uint32_t x = 0; x < count; ++x) {
    const uint16_t *from = pixels + at[x];
    std::memcpy(top + x, from, 4);
    std::memcpy(bottom + x, from + pitch, 4);
  }
}

// sums[x] = weights times values over the taps of x (index and weight [taps, count]). Compiled once, as pick_squares.
inline __attribute__((noinline)) void pick_weighted(const float *__restrict values, const int32_t *__restrict index,
                                                    const float *__restrict weight, uint32_t taps, uint32_t count,
                                                    float *__restrict sums) {
  for (uint32_t x = 0; x < count; ++x) {
    float sum = 0.0f;
    for (size_t t = x; t < (size_t)taps * count; t += count) sum += weight[t] * values[index[t]];
    sums[x] = sum;
  }
}

#define FI_NAMESPACE baseline
#define FI_LEVEL 0
#define FI_TARGET
#include "lbp_rows.inc"
#include "window_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET

#ifdef FASTICH_X86
#define FI_NAMESPACE avx2
#define FI_LEVEL 1
#define FI_TARGET __attribute__((target("avx2,bmi2,lzcnt,f16c")))
#include "lbp_rows.inc"
#include "window_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET

#define FI_NAMESPACE avx512
#define FI_LEVEL 2
#define FI_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni,lzcnt")))
#include "lbp_rows.inc"
#include "window_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET
#endif

struct Rows {
  const char *name;
  // lbp_rows.inc
  const uint8_t *(*decode_row)(const uint8_t *, const uint8_t *, uint32_t, const uint16_t *, uint16_t *);
  const uint8_t *(*decode_detail_row)(const uint8_t *, const uint8_t *, uint32_t, uint16_t *);
  uint8_t *(*encode_row)(const uint16_t *, const uint16_t *, uint32_t, uint8_t *, uint8_t *);
  uint8_t *(*encode_detail_row)(const uint16_t *, uint32_t, uint8_t *, uint8_t *);
  void (*split_rows)(const uint16_t *, const uint16_t *, uint32_t, uint16_t *const *);
  void (*join_rows)(const uint16_t *const *, uint32_t, uint16_t *, uint16_t *);
  // window_rows.inc
  void (*add_blocks)(const uint16_t *, uint32_t, uint32_t, uint32_t *);
  void (*hu_of_sums)(const uint32_t *, uint32_t, float, float, float, float *);
  void (*hu_of_half)(const uint16_t *, uint32_t, float, float, float *);
  void (*add_weighted)(const uint16_t *, uint32_t, float, float *);
  void (*add_weighted_float)(const float *, uint32_t, float, float *);
  void (*narrow)(const float *, const int32_t *, const float *, uint32_t, uint32_t, float, float, float *);
  void (*warp_row)(const WarpSource &, uint32_t, const WarpRow &);
  void (*window_row)(const float *, uint32_t, const Channel &, float *);
  void (*window_row_of_three)(const float *, uint32_t, const Channel *, float *);
  void (*to_float16)(const float *, size_t, uint16_t *);
  void (*to_bfloat16)(const float *, size_t, uint16_t *);
};

#define FI_ROWS(space)                                                                                             \
  Rows{#space, space::decode_row, space::decode_detail_row, space::encode_row, space::encode_detail_row,           \
       space::split_rows, space::join_rows, space::add_blocks, space::hu_of_sums, space::hu_of_half,               \
       space::add_weighted, space::add_weighted_float, space::narrow, space::warp_row, space::window_row,          \
       space::window_row_of_three, space::to_float16, space::to_bfloat16}

#ifdef FASTICH_X86
inline bool has_f16c_and_lzcnt() {  // not every compiler's __builtin_cpu_supports knows them: CPUID leaves 1 and 0x80000001
  unsigned eax, ebx, ecx, edx;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
  return f16c && __get_cpuid(0x80000001u, &eax, &ebx, &ecx, &edx) && (ecx >> 5 & 1);
}
#endif

inline Rows choose_rows() {
#ifdef FASTICH_X86
  const char *wish = std::getenv("FASTICH_CPU");
  const bool any = wish == nullptr || *wish == '\0';
  __builtin_cpu_init();
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni") && has_f16c_and_lzcnt();
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && has_f16c_and_lzcnt();
  if (has512 && (any || !std::strcmp(wish, "avx512"))) return FI_ROWS(avx512);
  if (has2 && (any || !std::strcmp(wish, "avx512") || !std::strcmp(wish, "avx2"))) return FI_ROWS(avx2);
#endif
  return FI_ROWS(baseline);
}

inline const Rows &rows() {
  static const Rows chosen = choose_rows();
  return chosen;
}

}  // namespace

#endif  // FASTICH_ROWS_H_
