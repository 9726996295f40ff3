// Planes of pixels to what was asked for: the kernels `finish_pixels` and `window_pixels`, one thread an output pixel.
//
// The area mean is windowing.area_matrix: each output covers a span of input pixels along each axis, counted here in whole
// steps of 1/size pixel, so the weights need no double precision and an inner pixel weighs exactly 1. The work is one
// read of each input pixel under the output; a factor of hundreds is slow on purpose (nothing asks for it) and right.
#ifndef FASTICH_GPU_WINDOW_CUH_
#define FASTICH_GPU_WINDOW_CUH_

#include "gpu_plan.cuh"

namespace fastich_gpu {

// The pixels of one slice, HU + 1024.
struct Source {
  const uint8_t *raw;
  const uint16_t *plane, *carry;
  int32_t kind, height, width, pitch, carry_pitch;

  __device__ __forceinline__ uint32_t at(int y, int x) const {
    if (kind == kRaw) {
      const uint8_t *bytes = raw + 2 * ((size_t)y * width + x);
      return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
    }
    const int halved = kind == kHalfFirst ? 1 : 0;
    const int band = (y >> halved) / kBand;
    return (uint32_t)(plane[(size_t)y * pitch + x] + carry[(size_t)band * carry_pitch + (x >> halved)]) & 0xffffu;
  }

  __device__ __forceinline__ float inside(int y, int x) const {
    return y >= 0 && x >= 0 && y < height && x < width ? (float)at(y, x) : 0.0f;
  }
};

__device__ __forceinline__ Source source_of(const FastichCudaBatch &batch, const Scratch &scratch, int slice) {
  const Plan &plan = scratch.plan[slice];
  const Slice own = slice_of(scratch, batch, slice);
  const uint8_t *raw = plan.kind == kRaw ? batch.data + batch.offset[slice] : nullptr;
  return Source{raw, own.plane, own.carry, plan.kind, plan.height, plan.width, scratch.pitch, batch.max_width};
}

// Pixels [N, max_height, max_width]: adds the carries to planes that `unpack_bands` left in the same memory, copies raw
// ones, and writes air around slices and for those that are not OK.
__global__ void __launch_bounds__(kThreads, kBlocks)
finish_pixels(const FastichCudaBatch batch, const Scratch scratch, uint16_t *pixels) {
  const int slice = (int)blockIdx.y, index = (int)(blockIdx.x * kThreads + threadIdx.x);
  if (index >= batch.max_height * batch.max_width) return;
  const Source source = source_of(batch, scratch, slice);
  const int y = index / batch.max_width, x = index % batch.max_width;
  const bool covered = source.kind != kAir && y < source.height && x < source.width;
  pixels[(size_t)slice * batch.max_height * batch.max_width + index] = covered ? (uint16_t)source.at(y, x) : (uint16_t)0;
}

// The input pixels under one output along one axis; left and right count 1/size pixel from the first one's left edge.
struct Span {
  int32_t first, count, left, right;

  __device__ __forceinline__ float weight(int i, int size) const {
    const int32_t overlap = min((i + 1) * size, right) - max(i * size, left);
    return overlap == size ? 1.0f : (float)overlap / (float)size;
  }
};

__device__ __forceinline__ Span span_of(int output, int num_in, int square, int size) {
  const int64_t from = (int64_t)output * square - (int64_t)((square - num_in) / 2) * size, to = from + square;
  const int64_t low = max(from, (int64_t)0), high = min(to, (int64_t)num_in * size);
  if (high <= low) return Span{0, 0, 0, 0};
  const int32_t first = (int32_t)((uint32_t)low / (uint32_t)size);  // both fit 32 bits: 65535 * 65535
  const int32_t end = (int32_t)(((uint32_t)high + (uint32_t)size - 1u) / (uint32_t)size);
  const int64_t start = (int64_t)first * size;
  return Span{first, end - first, (int32_t)(low - start), (int32_t)(high - start)};
}

// A 2 x 3 map from output to input, pixel centres at +0.5.
struct Matrix {
  float m[6];
};

// The value of a native pixel of the warped slice: bilinear, air (0) outside.
__device__ inline float warped(const Source &source, const Matrix &map, int y, int x) {
  const float xo = (float)x + 0.5f, yo = (float)y + 0.5f;
  const float xi = map.m[0] * xo + map.m[1] * yo + map.m[2] + 0.5f;  // in an image with a rim of one pixel: - 0.5 + 1
  const float yi = map.m[3] * xo + map.m[4] * yo + map.m[5] + 0.5f;
  if (!(xi >= 0 && yi >= 0 && xi < (float)(source.width + 1) && yi < (float)(source.height + 1))) return 0;  // and NaN
  const int xf = (int)xi, yf = (int)yi;
  const float fx = xi - (float)xf, fy = yi - (float)yf;
  const float top_left = source.inside(yf - 1, xf - 1), bottom_left = source.inside(yf, xf - 1);
  const float top = top_left + fx * (source.inside(yf - 1, xf) - top_left);
  const float bottom = bottom_left + fx * (source.inside(yf, xf) - bottom_left);
  return top + fy * (bottom - top);
}

template <bool kWarped>
__device__ inline float area_mean(const Source &source, const Matrix &map, int y, int x, int size) {
  const int square = max(source.height, source.width);
  const Span rows = span_of(y, source.height, square, size), columns = span_of(x, source.width, square, size);
  float sum = 0;
  for (int j = 0; j < rows.count; ++j) {
    float line = 0;
    for (int i = 0; i < columns.count; ++i) {
      const int yi = rows.first + j, xi = columns.first + i;
      line += columns.weight(i, size) * (kWarped ? warped(source, map, yi, xi) : (float)source.at(yi, xi));
    }
    sum += rows.weight(j, size) * line;
  }
  const float scale = (float)size / (float)square;
  return sum * scale * scale;
}

// FastichWindowing by value: ((HU - low) * inverse_width clipped to [0, 1]) * scale + shift.
struct Windows {
  int32_t size, count, dtype, layout;
  float low[kMaxWindows], inverse_width[kMaxWindows], scale[kMaxWindows], shift[kMaxWindows];

  __device__ __forceinline__ float of(float hu, int c) const {
    const float inside = (hu - low[c]) * inverse_width[c];
    return fminf(fmaxf(inside, 0.0f), 1.0f) * scale[c] + shift[c];
  }
};

__device__ __forceinline__ uint16_t to_16_bits(float value, int32_t dtype) {
  return dtype == FASTICH_FLOAT16 ? fastich_float16(value) : fastich_bfloat16(value);
}

// A block's outputs as they lie in HWC memory, so that neighbouring threads store neighbouring elements.
union WindowShared {
  float wide[kThreads * kMaxWindows];
  uint16_t narrow[kThreads * kMaxWindows];
};

__device__ inline void store_planes(const Windows &windows, float hu, uint32_t index, uint32_t area, void *out) {
  for (int c = 0; c < windows.count; ++c) {
    const size_t at = (size_t)c * area + index;
    const float value = windows.of(hu, c);
    if (windows.dtype == FASTICH_FLOAT32)
      static_cast<float *>(out)[at] = value;
    else
      static_cast<uint16_t *>(out)[at] = to_16_bits(value, windows.dtype);
  }
}

// Called by all threads; `count` of the block's pixels exist, the first of them is number `first` of the slice.
__device__ inline void store_interleaved(const Windows &windows, float hu, uint32_t first, int count, void *out,
                                         WindowShared *shared) {
  const int place = (int)threadIdx.x * windows.count, elements = count * windows.count;
  const size_t at = (size_t)first * windows.count;
  if (windows.dtype == FASTICH_FLOAT32) {
    for (int c = 0; c < windows.count; ++c) shared->wide[place + c] = windows.of(hu, c);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < elements; i += kThreads) static_cast<float *>(out)[at + i] = shared->wide[i];
  } else {
    for (int c = 0; c < windows.count; ++c) shared->narrow[place + c] = to_16_bits(windows.of(hu, c), windows.dtype);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < elements; i += kThreads) static_cast<uint16_t *>(out)[at + i] = shared->narrow[i];
  }
}

// One thread an output pixel, blocks along the output's rows: matrix [N, 6] where kWarped, intensity [N, 2] or null.
template <bool kWarped>
__global__ void __launch_bounds__(kThreads, kBlocks)
window_pixels(const FastichCudaBatch batch, const Scratch scratch, const float *matrix, const float *intensity,
              const Windows windows, void *out) {
  FASTICH_SHARED(WindowShared, shared);
  const int slice = (int)blockIdx.y, size = windows.size;
  const uint32_t area = (uint32_t)size * (uint32_t)size, first = blockIdx.x * kThreads, index = first + threadIdx.x;
  const Source source = source_of(batch, scratch, slice);
  float hu = kAirHu;
  if (index < area && source.kind != kAir) {
    Matrix map{};
    if (kWarped)
      for (int i = 0; i < 6; ++i) map.m[i] = matrix[6 * slice + i];
    const float mean = area_mean<kWarped>(source, map, (int)(index / (uint32_t)size), (int)(index % (uint32_t)size), size);
    const float rounded_down = source.kind == kHalfPlane ? 0.5f : 0.0f;  // see docs/records.md, mode half-first
    hu = mean + (kAirHu + rounded_down);
    if (intensity) hu = hu * intensity[2 * slice] + intensity[2 * slice + 1];
  }
  const size_t element_bytes = windows.dtype == FASTICH_FLOAT32 ? 4 : 2;
  void *image = static_cast<char *>(out) + (size_t)slice * area * windows.count * element_bytes;
  if (windows.layout == FASTICH_HWC)
    store_interleaved(windows, hu, first, (int)min(area - first, (uint32_t)kThreads), image, &shared);
  else if (index < area)
    store_planes(windows, hu, index, area, image);
}

}  // namespace fastich_gpu

#endif  // FASTICH_GPU_WINDOW_CUH_
