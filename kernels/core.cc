// The codec and the fused pass of core.h over rows of lbp_rows.inc, for the best instruction set that this CPU has.

#include "core.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FASTICH_X86 1
#endif

#define FI_NAMESPACE baseline
#define FI_LEVEL 0
#define FI_TARGET
#include "lbp_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET

#ifdef FASTICH_X86
#define FI_NAMESPACE avx2
#define FI_LEVEL 1
#define FI_TARGET __attribute__((target("avx2,bmi2,lzcnt")))
#include "lbp_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET

#define FI_NAMESPACE avx512
#define FI_LEVEL 2
#define FI_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni,lzcnt")))
#include "lbp_rows.inc"
#undef FI_NAMESPACE
#undef FI_LEVEL
#undef FI_TARGET
#endif

namespace {

constexpr uint32_t kRun = 32, kMaxSide = 65535, kMaxWindows = 16;
constexpr uint64_t kMaxPixels = 1ull << 26;
constexpr size_t kHeader = 16;
constexpr uint8_t kMagic[4] = {'L', 'B', 'P', '1'};
constexpr uint8_t kVersion = 1;
constexpr float kAirHu = -1024.0f;

struct Rows {
  const char *name;
  void (*decode_row)(const uint8_t *, const uint8_t *, uint32_t, const uint16_t *, uint16_t *);
  void (*decode_detail_row)(const uint8_t *, const uint8_t *, uint32_t, uint16_t *);
  uint8_t *(*encode_row)(const uint16_t *, const uint16_t *, uint32_t, uint8_t *, uint8_t *);
  uint8_t *(*encode_detail_row)(const uint16_t *, uint32_t, uint8_t *, uint8_t *);
  void (*add_blocks)(const uint16_t *, uint32_t, uint32_t, uint32_t *);
  void (*window_row)(const float *, uint32_t, float, float, float, float, float *);
};

#define FI_ROWS(space) \
  Rows{#space, space::decode_row, space::decode_detail_row, space::encode_row, space::encode_detail_row, \
       space::add_blocks, space::window_row}

Rows choose_rows() {
#ifdef FASTICH_X86
  const char *wish = std::getenv("FASTICH_CPU");
  const bool any = wish == nullptr || *wish == '\0';
  __builtin_cpu_init();
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  if (has512 && (any || !std::strcmp(wish, "avx512"))) return FI_ROWS(avx512);
  if (has2 && (any || !std::strcmp(wish, "avx512") || !std::strcmp(wish, "avx2"))) return FI_ROWS(avx2);
#endif
  return FI_ROWS(baseline);
}

const Rows &rows() {
  static const Rows chosen = choose_rows();
  return chosen;
}

bool sides_ok(uint64_t height, uint64_t width) {
  return height >= 1 && width >= 1 && height <= kMaxSide && width <= kMaxSide && height * width <= kMaxPixels;
}

uint32_t runs_of(uint32_t width) { return (width + kRun - 1) / kRun; }

void put_u32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; ++i) at[i] = (uint8_t)(value >> (8 * i));
}

uint32_t get_u32(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

// One stream of runs inside a payload: a table of widths, then the words. `next` is where the stream after it begins.
struct Stream {
  const uint8_t *widths = nullptr, *words = nullptr, *next = nullptr;
  uint32_t height = 0, runs = 0;
};

// Checks a stream's widths and length against the bytes there are; every later read stays inside it.
bool open_stream(const uint8_t *at, const uint8_t *end, uint32_t height, uint32_t width, Stream *stream) {
  const uint32_t runs = runs_of(width);
  const uint64_t count = (uint64_t)height * runs;
  if ((uint64_t)(end - at) < count) return false;
  uint64_t words = 0;
  uint8_t widest = 0;
  for (uint64_t i = 0; i < count; ++i) {
    words += at[i];
    widest = std::max(widest, at[i]);
  }
  if (widest > 16 || (uint64_t)(end - at) - count < 4 * words) return false;
  *stream = Stream{at, at + count, at + count + 4 * words, height, runs};
  return true;
}

// Walks a stream row by row; a row's buffer holds runs * 32 pixels.
class RowReader {
 public:
  RowReader(const Stream &stream, bool predicted)
      : stream_(stream), predicted_(predicted), widths_(stream.widths), words_(stream.words),
        first_(stream.runs * kRun), second_(stream.runs * kRun) {}

  const uint16_t *next() {
    if (predicted_)
      rows().decode_row(widths_, words_, stream_.runs, first_.data(), second_.data());
    else
      rows().decode_detail_row(widths_, words_, stream_.runs, second_.data());
    for (uint32_t r = 0; r < stream_.runs; ++r) words_ += 4 * widths_[r];
    widths_ += stream_.runs;
    first_.swap(second_);
    return first_.data();
  }

 private:
  Stream stream_;
  bool predicted_;
  const uint8_t *widths_, *words_;
  std::vector<uint16_t> first_, second_;
};

struct Payload {
  int32_t mode = FASTICH_FLAT;
  Stream streams[4];  // flat: one; half-first: the half plane, then three detail planes
};

bool open_lbp(const uint8_t *data, size_t size, uint32_t height, uint32_t width, Payload *payload) {
  if (size < kHeader || std::memcmp(data, kMagic, 4) || data[4] != kVersion || data[6] || data[7]) return false;
  if (get_u32(data + 8) != height || get_u32(data + 12) != width) return false;
  const uint8_t *end = data + size;
  payload->mode = data[5];
  if (payload->mode == FASTICH_FLAT)
    return open_stream(data + kHeader, end, height, width, &payload->streams[0]) && payload->streams[0].next == end;
  if (payload->mode != FASTICH_HALF_FIRST || height % 2 || width % 2) return false;
  const uint8_t *at = data + kHeader;
  for (Stream &stream : payload->streams) {
    if (!open_stream(at, end, height / 2, width / 2, &stream)) return false;
    at = stream.next;
  }
  return at == end;
}

// Reversible S-transform of a pair, exact modulo 2^16: low is the floor of the mean where |a - b| < 32768.
inline void split(uint16_t a, uint16_t b, uint16_t *low, uint16_t *high) {
  *high = (uint16_t)(a - b);
  *low = (uint16_t)(b + (uint16_t)((int16_t)*high >> 1));
}

inline void join(uint16_t low, uint16_t high, uint16_t *a, uint16_t *b) {
  *b = (uint16_t)(low - (uint16_t)((int16_t)high >> 1));
  *a = (uint16_t)(*b + high);
}

// Rows of a whole slice in order, from any payload.
class SliceReader {
 public:
  SliceReader(const uint8_t *data, int32_t codec, const Payload &payload, uint32_t width)
      : raw_(codec == FASTICH_RAW ? data : nullptr), mode_(payload.mode), width_(width) {
    if (raw_) {
      row_.resize(width);
    } else if (mode_ == FASTICH_FLAT) {
      readers_.emplace_back(payload.streams[0], true);
    } else {
      for (int i = 0; i < 4; ++i) readers_.emplace_back(payload.streams[i], i == 0);
      row_.resize(width);
      odd_row_.resize(width);
    }
  }

  const uint16_t *next() {
    if (raw_) {
      for (uint32_t x = 0; x < width_; ++x, raw_ += 2) row_[x] = (uint16_t)(raw_[0] | raw_[1] << 8);
      return row_.data();
    }
    if (mode_ == FASTICH_FLAT) return readers_[0].next();
    if (odd_) {
      odd_ = false;
      return odd_row_.data();
    }
    odd_ = true;
    const uint16_t *ll = readers_[0].next(), *lh = readers_[1].next(), *hl = readers_[2].next(), *hh = readers_[3].next();
    for (uint32_t x = 0; x < width_ / 2; ++x) {
      uint16_t low0, low1, high0, high1;
      join(ll[x], lh[x], &low0, &low1);
      join(hl[x], hh[x], &high0, &high1);
      join(low0, high0, &row_[2 * x], &row_[2 * x + 1]);
      join(low1, high1, &odd_row_[2 * x], &odd_row_[2 * x + 1]);
    }
    return row_.data();
  }

 private:
  const uint8_t *raw_;
  int32_t mode_;
  uint32_t width_;
  std::vector<RowReader> readers_;
  std::vector<uint16_t> row_, odd_row_;
  bool odd_ = false;
};

bool open_any(const uint8_t *data, size_t size, int32_t codec, uint32_t height, uint32_t width, Payload *payload) {
  if (codec == FASTICH_RAW) return size == (size_t)2 * height * width;
  return open_lbp(data, size, height, width, payload);
}

// Row-wise encoder of one plane, with the padding of the format.
class PlaneWriter {
 public:
  PlaneWriter(uint32_t height, uint32_t width, uint8_t *at)
      : runs_(runs_of(width)), width_(width), widths_(at), words_(at + (size_t)height * runs_),
        above_(runs_ * kRun + 1), here_(runs_ * kRun + 1) {}

  void add(const uint16_t *row, bool predicted) {
    std::memcpy(here_.data() + 1, row, 2 * (size_t)width_);
    std::fill(here_.begin() + 1 + width_, here_.end(), predicted ? row[width_ - 1] : (uint16_t)0);
    words_ = predicted ? rows().encode_row(here_.data() + 1, above_.data() + 1, runs_, widths_, words_)
                       : rows().encode_detail_row(here_.data() + 1, runs_, widths_, words_);
    widths_ += runs_;
    above_.swap(here_);
    here_[0] = 0;
  }

  uint8_t *end() const { return words_; }

 private:
  uint32_t runs_, width_;
  uint8_t *widths_, *words_;
  std::vector<uint16_t> above_, here_;
};

uint8_t *encode_half_first(const uint16_t *pixels, uint32_t height, uint32_t width, uint8_t *at) {
  const uint32_t h = height / 2, w = width / 2;
  std::vector<uint16_t> planes[4];
  for (auto &plane : planes) plane.resize((size_t)h * w);
  for (uint32_t y = 0; y < h; ++y)
    for (uint32_t x = 0; x < w; ++x) {
      const uint16_t *top = pixels + (size_t)2 * y * width + 2 * x, *bottom = top + width;
      const size_t i = (size_t)y * w + x;
      uint16_t low0, low1, high0, high1;
      split(top[0], top[1], &low0, &high0);
      split(bottom[0], bottom[1], &low1, &high1);
      split(low0, low1, &planes[0][i], &planes[1][i]);
      split(high0, high1, &planes[2][i], &planes[3][i]);
    }
  for (int p = 0; p < 4; ++p) {
    PlaneWriter writer(h, w, at);
    for (uint32_t y = 0; y < h; ++y) writer.add(planes[p].data() + (size_t)y * w, p == 0);
    at = writer.end();
  }
  return at;
}

uint16_t to_float16(float value) {  // IEEE 754 binary16, round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  const int32_t exponent = (int32_t)(bits >> 23 & 0xff) - 112;
  uint32_t mantissa = bits & 0x7fffff;
  if (exponent >= 31) return (uint16_t)(sign | 0x7c00);
  if (exponent <= 0) {
    if (exponent < -10) return (uint16_t)sign;
    mantissa |= 0x800000;
    const uint32_t shift = (uint32_t)(14 - exponent), half = 1u << (shift - 1), rest = mantissa & ((1u << shift) - 1);
    uint32_t result = mantissa >> shift;
    if (rest > half || (rest == half && (result & 1))) ++result;
    return (uint16_t)(sign | result);
  }
  uint32_t result = (uint32_t)exponent << 10 | mantissa >> 13;
  const uint32_t rest = mantissa & 0x1fff;
  if (rest > 0x1000 || (rest == 0x1000 && (result & 1))) ++result;
  return (uint16_t)(sign | result);
}

uint16_t to_bfloat16(float value) {  // round to nearest even; no NaN comes here
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Writes finished output rows of HU through the windows in the dtype and layout that were asked for.
class Output {
 public:
  Output(const FastichWindowing &windowing, void *out)
      : w_(windowing), out_(out), row_((size_t)windowing.size) {}

  void write(const float *hu, uint32_t y) {
    const uint32_t size = (uint32_t)w_.size, count = (uint32_t)w_.num_windows;
    for (uint32_t c = 0; c < count; ++c) {
      const size_t at = w_.layout == FASTICH_CHW ? ((size_t)c * size + y) * size : (size_t)y * size * count + c;
      const size_t step = w_.layout == FASTICH_CHW ? 1 : count;
      const bool direct = w_.dtype == FASTICH_FLOAT32 && step == 1;
      float *target = direct ? static_cast<float *>(out_) + at : row_.data();
      rows().window_row(hu, size, w_.low_hu[c], 1.0f / w_.width_hu[c], 1.0f / w_.std[c], -w_.mean[c] / w_.std[c], target);
      if (!direct) store(at, step);
    }
  }

 private:
  void store(size_t at, size_t step) {
    const size_t size = row_.size();
    if (w_.dtype == FASTICH_FLOAT32) {
      float *out = static_cast<float *>(out_) + at;
      for (size_t x = 0; x < size; ++x) out[x * step] = row_[x];
    } else {
      uint16_t *out = static_cast<uint16_t *>(out_) + at;
      for (size_t x = 0; x < size; ++x)
        out[x * step] = w_.dtype == FASTICH_FLOAT16 ? to_float16(row_[x]) : to_bfloat16(row_[x]);
    }
  }

  const FastichWindowing &w_;
  void *out_;
  std::vector<float> row_;
};

// Where output pixels lie over input pixels along one axis, as windowing.area_matrix: first input, count, weights.
struct Axis {
  std::vector<uint32_t> first, count;
  std::vector<float> weight;  // [size, most]
  uint32_t most = 0;

  Axis(uint32_t num_in, uint32_t square, uint32_t size) : first(size), count(size) {
    const double scale = (double)square / size, pad = (double)((square - num_in) / 2);
    most = (uint32_t)std::ceil(scale) + 2;
    weight.assign((size_t)size * most, 0.0f);
    for (uint32_t o = 0; o < size; ++o) {
      const double left = o * scale - pad, right = left + scale;
      const double low = std::max(0.0, std::floor(left)), high = std::min((double)num_in, std::ceil(right));
      first[o] = (uint32_t)std::min(low, (double)num_in);
      count[o] = high > low ? std::min((uint32_t)(high - low), most) : 0;
      for (uint32_t i = 0; i < count[o]; ++i) {
        const double start = first[o] + i;
        const double overlap = std::min(start + 1, right) - std::max(start, left);
        weight[(size_t)o * most + i] = (float)(std::max(overlap, 0.0) / scale);
      }
    }
  }
};

// Area mean fed row by row (values above air, so that air outside the image is 0), rows of HU out.
template <typename Pixel, typename NextRow>
void area_mean(NextRow next_row, uint32_t height, uint32_t width, uint32_t size, float gain, float offset, Output *out) {
  const uint32_t square = std::max(height, width);
  const Axis vertical(height, square, size), horizontal(width, square, size);
  std::vector<float> recent((size_t)vertical.most * size), sums(size);
  uint32_t read = 0;
  for (uint32_t o = 0; o < size; ++o) {
    const uint32_t first = vertical.first[o], end = first + vertical.count[o];
    for (; read < end; ++read) {
      const Pixel *row = next_row();
      float *narrow = recent.data() + (size_t)(read % vertical.most) * size;
      for (uint32_t x = 0; x < size; ++x) {
        float sum = 0;
        const float *weight = horizontal.weight.data() + (size_t)x * horizontal.most;
        for (uint32_t i = 0; i < horizontal.count[x]; ++i) sum += weight[i] * (float)row[horizontal.first[x] + i];
        narrow[x] = sum;
      }
    }
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (uint32_t i = 0; i < vertical.count[o]; ++i) {
      const float weight = vertical.weight[(size_t)o * vertical.most + i];
      const float *narrow = recent.data() + (size_t)((first + i) % vertical.most) * size;
      for (uint32_t x = 0; x < size; ++x) sums[x] += weight * narrow[x];
    }
    for (uint32_t x = 0; x < size; ++x) sums[x] = (sums[x] + kAirHu) * gain + offset;
    out->write(sums.data(), o);
  }
}

void block_mean(SliceReader *reader, uint32_t factor, uint32_t size, float gain, float offset, Output *out) {
  std::vector<uint32_t> sums(size);
  std::vector<float> hu(size);
  const float scale = 1.0f / (float)(factor * factor);
  for (uint32_t o = 0; o < size; ++o) {
    std::fill(sums.begin(), sums.end(), 0u);
    for (uint32_t i = 0; i < factor; ++i) rows().add_blocks(reader->next(), size, factor, sums.data());
    for (uint32_t x = 0; x < size; ++x) hu[x] = ((float)sums[x] * scale + kAirHu) * gain + offset;
    out->write(hu.data(), o);
  }
}

// Bilinear warp at native resolution with air outside; pixel centres lie at +0.5 (fastich/loaders/augment.py).
class Warp {
 public:
  Warp(SliceReader *reader, uint32_t height, uint32_t width, const float *matrix)
      : height_(height), width_(width), matrix_(matrix), pixels_((size_t)(height + 2) * (width + 2)), row_(width) {
    for (uint32_t y = 0; y < height; ++y)
      std::memcpy(pixels_.data() + (size_t)(y + 1) * (width + 2) + 1, reader->next(), 2 * (size_t)width);
  }

  const float *next() {
    const float yo = (float)y_++ + 0.5f;
    const size_t pitch = (size_t)width_ + 2;
    for (uint32_t x = 0; x < width_; ++x) {
      const float xo = (float)x + 0.5f;
      const float xi = matrix_[0] * xo + matrix_[1] * yo + matrix_[2] + 0.5f;  // in the padded image: - 0.5 + 1
      const float yi = matrix_[3] * xo + matrix_[4] * yo + matrix_[5] + 0.5f;
      float value = 0;
      if (xi >= 0 && yi >= 0 && xi < (float)(width_ + 1) && yi < (float)(height_ + 1)) {  // false for NaN
        const uint32_t xf = (uint32_t)xi, yf = (uint32_t)yi;
        const float fx = xi - (float)xf, fy = yi - (float)yf;
        const uint16_t *at = pixels_.data() + yf * pitch + xf;
        const float top = (float)at[0] + fx * ((float)at[1] - (float)at[0]);
        const float bottom = (float)at[pitch] + fx * ((float)at[pitch + 1] - (float)at[pitch]);
        value = top + fy * (bottom - top);
      }
      row_[x] = value;
    }
    return row_.data();
  }

 private:
  uint32_t height_, width_, y_ = 0;
  const float *matrix_;
  std::vector<uint16_t> pixels_;
  std::vector<float> row_;
};

bool windowing_ok(const FastichWindowing *w) {
  if (w == nullptr || w->size < 1 || w->size > (int32_t)kMaxSide || w->num_windows < 1) return false;
  if (w->num_windows > (int32_t)kMaxWindows || w->dtype < 0 || w->dtype > 2 || w->layout < 0 || w->layout > 1) return false;
  for (int32_t c = 0; c < w->num_windows; ++c)
    if (!(w->width_hu[c] > 0) || !(w->std[c] > 0)) return false;
  return true;
}

}  // namespace

extern "C" {

const char *fastich_cpu() { return rows().name; }

size_t fastich_lbp_bound(uint32_t height, uint32_t width) {
  if (!sides_ok(height, width)) return 0;
  const size_t flat = (size_t)height * runs_of(width);
  const size_t half = (size_t)4 * ((height + 1) / 2) * runs_of((width + 1) / 2);
  return kHeader + std::max(flat, half) * (1 + 4 * 16) + 64;  // 64: a last full-width store
}

int32_t fastich_lbp_encode(const uint16_t *pixels, uint32_t height, uint32_t width, int32_t mode, uint8_t *out,
                           size_t capacity, size_t *written) try {
  if (!pixels || !out || !written || !sides_ok(height, width) || capacity < fastich_lbp_bound(height, width))
    return FASTICH_BAD_ARGUMENT;
  if (mode != FASTICH_FLAT && (mode != FASTICH_HALF_FIRST || height % 2 || width % 2)) return FASTICH_BAD_ARGUMENT;
  std::memcpy(out, kMagic, 4);
  out[4] = kVersion;
  out[5] = (uint8_t)mode;
  out[6] = out[7] = 0;
  put_u32(out + 8, height);
  put_u32(out + 12, width);
  if (mode == FASTICH_HALF_FIRST) {
    *written = (size_t)(encode_half_first(pixels, height, width, out + kHeader) - out);
    return FASTICH_OK;
  }
  PlaneWriter writer(height, width, out + kHeader);
  for (uint32_t y = 0; y < height; ++y) writer.add(pixels + (size_t)y * width, true);
  *written = (size_t)(writer.end() - out);
  return FASTICH_OK;
} catch (const std::bad_alloc &) {
  return FASTICH_BAD_ARGUMENT;
}

int32_t fastich_decode(const uint8_t *payload, size_t size, int32_t codec, uint32_t height, uint32_t width,
                       uint16_t *pixels) try {
  if (!payload || !pixels || !sides_ok(height, width)) return FASTICH_BAD_ARGUMENT;
  Payload opened;
  if (!open_any(payload, size, codec, height, width, &opened)) return FASTICH_DAMAGED;
  SliceReader reader(payload, codec, opened, width);
  for (uint32_t y = 0; y < height; ++y) std::memcpy(pixels + (size_t)y * width, reader.next(), 2 * (size_t)width);
  return FASTICH_OK;
} catch (const std::bad_alloc &) {
  return FASTICH_BAD_ARGUMENT;
}

int32_t fastich_lbp_decode_half(const uint8_t *payload, size_t size, uint32_t height, uint32_t width,
                                uint16_t *pixels) try {
  if (!payload || !pixels || !sides_ok(height, width)) return FASTICH_BAD_ARGUMENT;
  Payload opened;
  if (!open_lbp(payload, size, height, width, &opened) || opened.mode != FASTICH_HALF_FIRST) return FASTICH_DAMAGED;
  RowReader reader(opened.streams[0], true);
  for (uint32_t y = 0; y < height / 2; ++y) std::memcpy(pixels + (size_t)y * (width / 2), reader.next(), width);
  return FASTICH_OK;
} catch (const std::bad_alloc &) {
  return FASTICH_BAD_ARGUMENT;
}

int32_t fastich_decode_window(const uint8_t *payload, size_t size, int32_t codec, uint32_t height, uint32_t width,
                              const float *matrix, float gain, float offset_hu, const FastichWindowing *windowing,
                              void *out) try {
  if (!payload || !out || !sides_ok(height, width) || !windowing_ok(windowing)) return FASTICH_BAD_ARGUMENT;
  Payload opened;
  if (!open_any(payload, size, codec, height, width, &opened)) return FASTICH_DAMAGED;
  const uint32_t side = (uint32_t)windowing->size;
  Output output(*windowing, out);
  // The half plane is the block mean up to 1 HU once 0.5 is added: the one stated exception to the exact area mean.
  if (opened.mode == FASTICH_HALF_FIRST && codec == FASTICH_LBP && !matrix && height == width && height == 2 * side) {
    RowReader half(opened.streams[0], true);
    std::vector<float> hu(side);
    for (uint32_t y = 0; y < side; ++y) {
      const uint16_t *row = half.next();
      for (uint32_t x = 0; x < side; ++x) hu[x] = ((float)row[x] + (kAirHu + 0.5f)) * gain + offset_hu;
      output.write(hu.data(), y);
    }
    return FASTICH_OK;
  }
  SliceReader reader(payload, codec, opened, width);
  if (matrix) {
    Warp warp(&reader, height, width, matrix);
    area_mean<float>([&] { return warp.next(); }, height, width, side, gain, offset_hu, &output);
  } else if (height == width && height % side == 0 && height / side <= 256) {
    block_mean(&reader, height / side, side, gain, offset_hu, &output);
  } else {
    area_mean<uint16_t>([&] { return reader.next(); }, height, width, side, gain, offset_hu, &output);
  }
  return FASTICH_OK;
} catch (const std::bad_alloc &) {
  return FASTICH_BAD_ARGUMENT;
}

}  // extern "C"
