// The calls of gpu.h: checks on the host, scratch memory laid out, four kernels on a stream.
//
// With FASTICH_EMULATE this file is C++ for the CPU: tests/cuda_emulator.h runs the very same kernels, thread by thread.

#include "gpu.h"

#ifdef FASTICH_EMULATE
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>

#define FASTICH_SHARED(type, name) __shared__ type name
#define FASTICH_LAUNCH(kernel, grid, stream, ...) \
  kernel<<<grid, fastich_gpu::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

__device__ __forceinline__ uint16_t fastich_float16(float value) {  // IEEE 754 binary16, round to nearest even
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ uint16_t fastich_bfloat16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

#include "gpu_lbp.cuh"
#include "gpu_window.cuh"

#define FASTICH_WORDS_OF(x) #x
#define FASTICH_WORDS(x) FASTICH_WORDS_OF(x)

namespace {

using namespace fastich_gpu;

constexpr int32_t kMaxSlices = 65535;  // the grid's second side

bool shape_ok(const FastichCudaBatch *batch) {
  if (!batch || batch->num < 0 || batch->num > kMaxSlices) return false;
  if (batch->codec != FASTICH_RAW && batch->codec != FASTICH_LBP) return false;
  if (batch->max_height < 1 || batch->max_height > kMaxSide || batch->max_width < 1 || batch->max_width > kMaxSide) return false;
  return (int64_t)batch->max_height * batch->max_width <= kMaxPixels;
}

bool windowing_ok(const FastichWindowing *w) {
  if (!w || w->size < 1 || w->size > kMaxSide || w->num_windows < 1 || w->num_windows > kMaxWindows) return false;
  if (w->dtype < FASTICH_FLOAT32 || w->dtype > FASTICH_BFLOAT16) return false;
  if (w->layout != FASTICH_CHW && w->layout != FASTICH_HWC) return false;
  for (int32_t c = 0; c < w->num_windows; ++c)
    if (!(w->width_hu[c] > 0) || !(w->std[c] > 0)) return false;
  return true;
}

Windows by_value(const FastichWindowing &w) {
  Windows windows{w.size, w.num_windows, w.dtype, w.layout, {}, {}, {}, {}};
  for (int32_t c = 0; c < w.num_windows; ++c) {
    windows.low[c] = w.low_hu[c];
    windows.inverse_width[c] = 1.0f / w.width_hu[c];
    windows.scale[c] = 1.0f / w.std[c];
    windows.shift[c] = -w.mean[c] / w.std[c];
  }
  return windows;
}

int32_t blocks_of(int64_t items, int32_t a_block) { return (int32_t)((items + a_block - 1) / a_block); }

// The scratch memory's parts in order, each on a boundary of 256 bytes; returns where they end.
size_t lay_out(const FastichCudaBatch &batch, void *memory, Scratch *scratch) {
  size_t end = 0;
  const auto part = [&](size_t bytes) {
    void *at = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(memory) + end);
    end += (bytes + 255) / 256 * 256;
    return at;
  };
  const size_t num = (size_t)batch.num, height = (size_t)batch.max_height, packed = batch.codec == FASTICH_LBP;
  scratch->bands = blocks_of(batch.max_height, kBand);
  scratch->pitch = (batch.max_width + 1) / 2 * 2;  // even: two pixels a store
  scratch->plan = static_cast<Plan *>(part(num * sizeof(Plan)));
  scratch->row_start = static_cast<uint32_t *>(part(packed * num * 2 * height * sizeof(uint32_t)));
  scratch->carry = static_cast<uint16_t *>(part(packed * num * scratch->bands * batch.max_width * sizeof(uint16_t)));
  scratch->plane = static_cast<uint16_t *>(part(packed * num * height * scratch->pitch * sizeof(uint16_t)));
  return end;
}

bool call_ok(const FastichCudaBatch *batch, const void *out, const int32_t *status, void *memory, size_t bytes) {
  const size_t needed = fastich_cuda_scratch_bytes(batch);
  if (!needed || !out || !status || !memory || bytes < needed || reinterpret_cast<uintptr_t>(memory) % 256) return false;
  return batch->data && batch->offset && batch->size && batch->height && batch->width && batch->data_bytes >= 0;
}

void unpack(const FastichCudaBatch &batch, const Scratch &scratch, int half_side, int32_t *status, void *stream) {
  FASTICH_LAUNCH(open_payloads, dim3(batch.num), stream, batch, scratch, half_side, status);
  if (batch.codec != FASTICH_LBP) return;
  FASTICH_LAUNCH(unpack_bands, dim3(scratch.bands, batch.num), stream, batch, scratch);
  FASTICH_LAUNCH(carry_bands, dim3(blocks_of(batch.max_width, kThreads), batch.num), stream, batch, scratch);
}

int32_t launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? FASTICH_OK : FASTICH_CUDA + (int32_t)error;
}

}  // namespace

extern "C" {

size_t fastich_cuda_scratch_bytes(const FastichCudaBatch *batch) {
  Scratch scratch{};
  return shape_ok(batch) ? lay_out(*batch, nullptr, &scratch) + 256 : 0;  // 256: never 0 for a batch of none
}

int32_t fastich_cuda_decode(const FastichCudaBatch *batch, uint16_t *pixels, int32_t *status, void *scratch,
                            size_t scratch_bytes, void *stream) {
  if (!call_ok(batch, pixels, status, scratch, scratch_bytes)) return FASTICH_BAD_ARGUMENT;
  if (batch->num == 0) return FASTICH_OK;
  Scratch parts{};
  lay_out(*batch, scratch, &parts);
  parts.plane = pixels;
  parts.pitch = batch->max_width;
  unpack(*batch, parts, 0, status, stream);
  const int64_t area = (int64_t)batch->max_height * batch->max_width;
  FASTICH_LAUNCH(finish_pixels, dim3(blocks_of(area, kThreads), batch->num), stream, *batch, parts, pixels);
  return launched();
}

int32_t fastich_cuda_decode_window(const FastichCudaBatch *batch, const float *matrix, const float *intensity,
                                   const FastichWindowing *windowing, void *out, int32_t *status, void *scratch,
                                   size_t scratch_bytes, void *stream) {
  if (!call_ok(batch, out, status, scratch, scratch_bytes) || !windowing_ok(windowing)) return FASTICH_BAD_ARGUMENT;
  if (batch->num == 0) return FASTICH_OK;
  Scratch parts{};
  lay_out(*batch, scratch, &parts);
  const int size = windowing->size;
  const Windows windows = by_value(*windowing);
  const dim3 grid(blocks_of((int64_t)size * size, kThreads), batch->num);
  unpack(*batch, parts, matrix ? 0 : size, status, stream);
  if (matrix)
    FASTICH_LAUNCH(window_pixels<true>, grid, stream, *batch, parts, matrix, intensity, windows, out);
  else
    FASTICH_LAUNCH(window_pixels<false>, grid, stream, *batch, parts, matrix, intensity, windows, out);
  return launched();
}

const char *fastich_cuda_text(int32_t status) {
  if (status == FASTICH_OK) return "no error";
  if (status < FASTICH_CUDA) return "an argument makes no sense: a size, a null pointer, or too little scratch memory";
  return cudaGetErrorString(static_cast<cudaError_t>(status - FASTICH_CUDA));
}

const char *fastich_cuda_backend() {
#ifdef FASTICH_EMULATE
  return "emulated";
#else
  return "cuda-" FASTICH_WORDS(__CUDACC_VER_MAJOR__) "." FASTICH_WORDS(__CUDACC_VER_MINOR__);
#endif
}

}  // extern "C"
