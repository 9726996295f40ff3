// What the kernels of gpu.cu share: the plan of one payload, the scratch memory, and the words of a warp.
#ifndef FASTICH_GPU_PLAN_CUH_
#define FASTICH_GPU_PLAN_CUH_

#include "gpu.h"

namespace fastich_gpu {

constexpr int kLanes = 32, kThreads = 256, kWarps = kThreads / kLanes;
constexpr int kBlocks = 4;  // of a kernel on one SM at least: 64 registers a thread, 32 warps to hide latency with
constexpr uint32_t kAll = 0xffffffffu;
constexpr int kRun = 32;         // pixels in a run of the codec: one a lane
constexpr int kBand = 16;        // rows that a block unpacks: 32 bands of a 512 px slice, so 64 slices are 2,048 blocks
constexpr int kChunkRuns = 16;   // runs that it holds of each row at a time: 16 KiB of shared memory, 6 blocks on an A40's SM
constexpr int kChunk = kChunkRuns * kRun;
constexpr int kMaxSide = 65535, kMaxWindows = 16, kStreams = 4;
constexpr int64_t kMaxPixels = 1 << 26;
constexpr int64_t kHeader = 16;
constexpr float kAirHu = -1024.0f;

// Where the pixels of a slice come from.
enum Kind : int32_t { kAir, kRaw, kFlat, kHalfFirst, kHalfPlane };

// What `open_payloads` found in one payload. A stream is a table of widths (one byte a run) and the words behind it.
struct Plan {
  int32_t kind;
  int32_t height, width;     // of the pixels: the slice, or its half plane
  int32_t rows, columns;     // of each stream
  int32_t runs;              // of a row of a stream
  int64_t table[kStreams];   // byte of the payload where each stream begins
};

// Scratch memory by slice. `carry` first takes the last row of each band, then the sum of all bands above it.
struct Scratch {
  Plan *plan;             // [N]
  uint32_t *row_start;    // [N, 2 * max_height] first word of each row, stream by stream
  uint16_t *carry;        // [N, bands, max_width]
  uint16_t *plane;        // [N, max_height, pitch] pixels less their band's carry
  int32_t bands, pitch;
};

// The same slice's part of each array.
struct Slice {
  uint32_t *row_start;
  uint16_t *carry, *plane;
};

__device__ __forceinline__ Slice slice_of(const Scratch &scratch, const FastichCudaBatch &batch, int slice) {
  return Slice{scratch.row_start + (size_t)slice * 2 * batch.max_height,
               scratch.carry + (size_t)slice * scratch.bands * batch.max_width,
               scratch.plane + (size_t)slice * batch.max_height * scratch.pitch};
}

__device__ __forceinline__ int lane_of() { return (int)threadIdx.x % kLanes; }

__device__ __forceinline__ int warp_of() { return (int)threadIdx.x / kLanes; }

// Inclusive prefix sum over the lanes of a warp.
__device__ __forceinline__ uint32_t warp_sum(uint32_t value) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const uint32_t below = __shfl_up_sync(kAll, value, step);
    if (lane_of() >= step) value += below;
  }
  return value;
}

}  // namespace fastich_gpu

#endif  // FASTICH_GPU_PLAN_CUH_
