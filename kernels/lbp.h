// The LBP format: its streams, opened with every size checked, and rows of pixels in and out. Layout: docs/records.md.
#ifndef FASTICH_LBP_H_
#define FASTICH_LBP_H_

#include <vector>

#include "core.h"
#include "rows.h"

#ifndef FASTICH_KEPT_BYTES  // scratch memory that a thread holds on to between slices; the fuzzer sets 0, to see its ends
#define FASTICH_KEPT_BYTES (8u << 20)
#endif

namespace {

constexpr uint32_t kRun = 32, kMaxSide = 65535;
constexpr uint64_t kMaxPixels = 1ull << 26;
constexpr size_t kHeader = 16;
constexpr uint8_t kMagic[4] = {'L', 'B', 'P', '1'};
constexpr uint8_t kVersion = 1;

inline bool sides_ok(uint64_t height, uint64_t width) {
  return height >= 1 && width >= 1 && height <= kMaxSide && width <= kMaxSide && height * width <= kMaxPixels;
}

inline uint32_t runs_of(uint32_t width) { return (width + kRun - 1) / kRun; }

inline void put_u32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; ++i) at[i] = (uint8_t)(value >> (8 * i));
}

inline uint32_t get_u32(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

// One stream of runs inside a payload: a table of widths, then the words. `next` is where the stream after it begins.
struct Stream {
  const uint8_t *widths = nullptr, *words = nullptr, *next = nullptr;
  uint32_t height = 0, runs = 0;
};

// Checks a stream's widths and length against the bytes there are; every later read stays inside it.
inline bool open_stream(const uint8_t *at, const uint8_t *end, uint32_t height, uint32_t width, Stream *stream) {
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
      : runs_(stream.runs), predicted_(predicted), widths_(stream.widths), words_(stream.words),
        first_(stream.runs * kRun), second_(stream.runs * kRun) {}

  const uint16_t *next() {
    read(first_.data(), second_.data());
    first_.swap(second_);
    return first_.data();
  }

  // The next row, below `above`, to `row`: both hold runs * 32 pixels.
  void read(const uint16_t *above, uint16_t *row) {
    words_ = predicted_ ? rows().decode_row(widths_, words_, runs_, above, row)
                        : rows().decode_detail_row(widths_, words_, runs_, row);
    widths_ += runs_;
  }

 private:
  uint32_t runs_;
  bool predicted_;
  const uint8_t *widths_, *words_;
  std::vector<uint16_t> first_, second_;
};

struct Payload {
  int32_t mode = FASTICH_FLAT;
  Stream streams[4];  // flat: one; half-first: the half plane, then three detail planes
};

inline bool open_lbp(const uint8_t *data, size_t size, uint32_t height, uint32_t width, Payload *payload) {
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
    if (raw_) {  // may lie at an odd address; little-endian, as every machine that this builds for
      std::memcpy(row_.data(), raw_, 2 * (size_t)width_);
      raw_ += 2 * (size_t)width_;
      return row_.data();
    }
    if (mode_ == FASTICH_FLAT) return readers_[0].next();
    odd_ = !odd_;
    if (!odd_) return odd_row_.data();
    join_into(row_.data(), odd_row_.data());
    return row_.data();
  }

  // The whole slice to pixels [height, width], without a copy where a row is a whole number of runs.
  void read_all(uint32_t height, uint16_t *pixels) {
    if (!raw_ && mode_ == FASTICH_HALF_FIRST) {
      for (uint32_t y = 0; y < height; y += 2, pixels += 2 * (size_t)width_) join_into(pixels, pixels + width_);
    } else if (!raw_ && width_ % kRun == 0) {
      const std::vector<uint16_t> air(width_);
      const uint16_t *above = air.data();
      for (uint32_t y = 0; y < height; ++y, above = pixels, pixels += width_) readers_[0].read(above, pixels);
    } else {
      for (uint32_t y = 0; y < height; ++y, pixels += width_) std::memcpy(pixels, next(), 2 * (size_t)width_);
    }
  }

 private:
  void join_into(uint16_t *top, uint16_t *bottom) {
    const uint16_t *planes[4];
    for (int i = 0; i < 4; ++i) planes[i] = readers_[(size_t)i].next();
    rows().join_rows(planes, width_ / 2, top, bottom);
  }

  const uint8_t *raw_;
  int32_t mode_;
  uint32_t width_;
  std::vector<RowReader> readers_;
  std::vector<uint16_t> row_, odd_row_;
  bool odd_ = false;
};

inline bool open_any(const uint8_t *data, size_t size, int32_t codec, uint32_t height, uint32_t width, Payload *payload) {
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

// Memory of this thread for a slice's pixels: a fresh block of this size would cost its page faults at every call.
class Scratch {
 public:
  explicit Scratch(size_t count) : kept_(memory()) {
    if (kept_.size() < count) kept_.resize(count);
  }
  ~Scratch() {
    if (kept_.size() * sizeof(uint16_t) > (size_t)FASTICH_KEPT_BYTES) std::vector<uint16_t>().swap(kept_);
  }
  uint16_t *data() { return kept_.data(); }

 private:
  static std::vector<uint16_t> &memory() {
    static thread_local std::vector<uint16_t> kept;
    return kept;
  }
  std::vector<uint16_t> &kept_;
};

inline uint8_t *encode_half_first(const uint16_t *pixels, uint32_t height, uint32_t width, uint8_t *at) {
  const uint32_t h = height / 2, w = width / 2;
  Scratch space((size_t)4 * h * w);
  for (uint32_t y = 0; y < h; ++y) {
    uint16_t *planes[4];
    for (size_t p = 0; p < 4; ++p) planes[p] = space.data() + (p * h + y) * w;
    rows().split_rows(pixels + (size_t)2 * y * width, pixels + ((size_t)2 * y + 1) * width, w, planes);
  }
  for (size_t p = 0; p < 4; ++p) {
    PlaneWriter writer(h, w, at);
    for (uint32_t y = 0; y < h; ++y) writer.add(space.data() + (p * h + y) * w, p == 0);
    at = writer.end();
  }
  return at;
}

}  // namespace

#endif  // FASTICH_LBP_H_
