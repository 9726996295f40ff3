// Pixels to network input: warp, area mean, gain and offset in HU, windows, normalisation, element type and layout.
//
// Rows go through one after the other while they are in cache; only the warp needs the whole slice at once. The numbers
// are those of fastich/windowing.py and fastich/loaders/cpu.py.
#ifndef FASTICH_WINDOW_H_
#define FASTICH_WINDOW_H_

#include <cmath>

#include "lbp.h"

namespace {

constexpr uint32_t kMaxWindows = 16;
constexpr uint32_t kMaxFactor = 128;  // a block's sum of 128 x 128 pixels fits an int32

// What happens to HU before the windows.
struct Intensity {
  float gain, offset;
};

// Writes finished output rows of HU through the windows in the dtype and layout that were asked for.
class Output {
 public:
  Output(const FastichWindowing &windowing, void *out)
      : w_(windowing), out_(out), row_((size_t)windowing.size * 3) {
    for (int32_t c = 0; c < w_.num_windows; ++c)
      channels_[c] = Channel{w_.low_hu[c], 1.0f / w_.width_hu[c], 1.0f / w_.std[c], -w_.mean[c] / w_.std[c]};
  }

  void write(const float *hu, uint32_t y) {
    const size_t size = (size_t)w_.size, count = (size_t)w_.num_windows;
    if (w_.layout == FASTICH_HWC && count == 3) {
      const size_t at = y * size * 3;
      float *target = w_.dtype == FASTICH_FLOAT32 ? static_cast<float *>(out_) + at : row_.data();
      rows().window_row_of_three(hu, (uint32_t)size, channels_, target);
      store(target, at, size * 3, 1);
      return;
    }
    for (size_t c = 0; c < count; ++c) {
      const bool planar = w_.layout == FASTICH_CHW;
      const size_t at = planar ? (c * size + y) * size : y * size * count + c;
      const bool direct = planar && w_.dtype == FASTICH_FLOAT32;
      float *target = direct ? static_cast<float *>(out_) + at : row_.data();
      rows().window_row(hu, (uint32_t)size, channels_[c], target);
      store(target, at, size, planar ? 1 : count);
    }
  }

 private:
  // `values` to the output from element `at` on, `step` apart; nothing to do where they were computed in place.
  void store(const float *values, size_t at, size_t count, size_t step) {
    if (w_.dtype == FASTICH_FLOAT32) {
      float *out = static_cast<float *>(out_) + at;
      if (values != out)
        for (size_t i = 0; i < count; ++i) out[i * step] = values[i];
      return;
    }
    uint16_t *out = static_cast<uint16_t *>(out_) + at;
    const auto convert = w_.dtype == FASTICH_FLOAT16 ? rows().to_float16 : rows().to_bfloat16;
    if (step == 1) return convert(values, count, out);
    halves_.resize(count);
    convert(values, count, halves_.data());
    for (size_t i = 0; i < count; ++i) out[i * step] = halves_[i];
  }

  const FastichWindowing &w_;
  void *out_;
  Channel channels_[kMaxWindows];
  std::vector<float> row_;
  std::vector<uint16_t> halves_;
};

// Where output pixels lie over input pixels along one axis, as windowing.area_matrix: taps of (input, weight), [taps, size].
struct Axis {
  uint32_t taps = 0;
  std::vector<int32_t> index;
  std::vector<float> weight;  // 0 where an output has fewer taps; its index is then a valid one

  Axis(uint32_t num_in, uint32_t square, uint32_t size) {
    const double scale = (double)square / size, pad = (double)((square - num_in) / 2);
    const uint32_t most = (uint32_t)std::ceil(scale) + 1;
    index.assign((size_t)most * size, 0);
    weight.assign((size_t)most * size, 0.0f);
    for (uint32_t o = 0; o < size; ++o) {
      const double left = o * scale - pad, right = left + scale;
      const double low = std::max(0.0, std::floor(left)), high = std::min((double)num_in, std::ceil(right));
      for (uint32_t t = 0; low + t < high && t < most; ++t) {
        const double start = low + t, overlap = std::min(start + 1, right) - std::max(start, left);
        index[(size_t)t * size + o] = (int32_t)start;
        weight[(size_t)t * size + o] = (float)(std::max(overlap, 0.0) / scale);
        taps = std::max(taps, t + 1);
      }
    }
  }
};

inline void add_row(const uint16_t *row, uint32_t width, float weight, float *sums) {
  rows().add_weighted(row, width, weight, sums);
}

inline void add_row(const float *row, uint32_t width, float weight, float *sums) {
  rows().add_weighted_float(row, width, weight, sums);
}

// Area mean of rows in record units (HU + 1024, so that air outside the image is 0): down the columns at full width, where
// every input row is used as it comes, then along the row.
template <typename NextRow>
void area_mean(NextRow next_row, uint32_t height, uint32_t width, uint32_t size, Intensity change, Output *out) {
  const uint32_t square = std::max(height, width);
  const Axis vertical(height, square, size), horizontal(width, square, size);
  std::vector<float> sums(width), hu(size);
  auto row = decltype(next_row())(nullptr);
  int64_t at = -1;  // the input row that `row` holds; one input row may serve two output rows, or many where it is enlarged
  for (uint32_t o = 0; o < size; ++o) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (uint32_t t = 0; t < vertical.taps; ++t) {
      const size_t tap = (size_t)t * size + o;
      if (vertical.weight[tap] == 0.0f) continue;
      for (; at < vertical.index[tap]; ++at) row = next_row();
      add_row(row, width, vertical.weight[tap], sums.data());
    }
    rows().narrow(sums.data(), horizontal.index.data(), horizontal.weight.data(), horizontal.taps, size, change.gain,
                  change.offset, hu.data());
    out->write(hu.data(), o);
  }
}

inline void block_mean(SliceReader *reader, uint32_t factor, uint32_t size, Intensity change, Output *out) {
  std::vector<uint32_t> sums(size);
  std::vector<float> hu(size);
  const float scale = 1.0f / (float)(factor * factor);
  for (uint32_t o = 0; o < size; ++o) {
    std::fill(sums.begin(), sums.end(), 0u);
    for (uint32_t i = 0; i < factor; ++i) rows().add_blocks(reader->next(), size, factor, sums.data());
    rows().hu_of_sums(sums.data(), size, scale, change.gain, change.offset, hu.data());
    out->write(hu.data(), o);
  }
}

// The half plane is the block mean up to 1 HU once 0.5 is added: the one stated exception to the exact area mean.
inline void half_plane(const Stream &stream, uint32_t size, Intensity change, Output *out) {
  RowReader reader(stream, true);
  std::vector<float> hu(size);
  for (uint32_t y = 0; y < size; ++y) {
    rows().hu_of_half(reader.next(), size, change.gain, change.offset, hu.data());
    out->write(hu.data(), y);
  }
}

// Bilinear warp at native resolution with air outside, then the area mean (fastich/loaders/augment.py).
inline void warped_mean(SliceReader *reader, uint32_t height, uint32_t width, const float *matrix, uint32_t size,
                        Intensity change, Output *out) {
  const size_t pitch = (size_t)width + 2;
  Scratch scratch(pitch * (height + 2));
  uint16_t *pixels = scratch.data();
  std::fill(pixels, pixels + pitch, (uint16_t)0);
  for (uint32_t y = 1; y <= height; ++y) {
    uint16_t *row = pixels + y * pitch;
    row[0] = row[width + 1] = 0;
    std::memcpy(row + 1, reader->next(), 2 * (size_t)width);
  }
  std::fill(pixels + pitch * (height + 1), pixels + pitch * (height + 2), (uint16_t)0);
  const WarpSource source{pixels, height, width, matrix};
  std::vector<int32_t> at(width);
  std::vector<uint32_t> pairs((size_t)2 * width);
  std::vector<float> values((size_t)3 * width);
  const WarpRow row{at.data(), values.data(), values.data() + width, pairs.data(), pairs.data() + width,
                    values.data() + 2 * (size_t)width};
  uint32_t y = 0;
  const auto next = [&]() -> const float * {
    rows().warp_row(source, y++, row);
    return row.out;
  };
  area_mean(next, height, width, size, change, out);
}

inline bool windowing_ok(const FastichWindowing *w) {
  if (w == nullptr || w->size < 1 || w->size > (int32_t)kMaxSide || w->num_windows < 1) return false;
  if (w->num_windows > (int32_t)kMaxWindows || w->dtype < 0 || w->dtype > 2 || w->layout < 0 || w->layout > 1) return false;
  for (int32_t c = 0; c < w->num_windows; ++c)
    if (!(w->width_hu[c] > 0) || !(w->std[c] > 0)) return false;
  return true;
}

}  // namespace

#endif  // FASTICH_WINDOW_H_
