// Packed bytes to planes of pixels: the kernels `open_payloads`, `unpack_bands` and `carry_bands`.
//
// A pixel is the sum of all residuals left of it and above it, modulo 2^16. Blocks add up bands of 16 rows on their own;
// the last row of a band is then what every later band lacks, so a plane holds pixels less a carry and no block waits for
// another. The S-transform of half-first payloads is linear in its low half: the carry of the half plane serves all four.
#ifndef FASTICH_GPU_LBP_CUH_
#define FASTICH_GPU_LBP_CUH_

#include "gpu_plan.cuh"

namespace fastich_gpu {

struct OpenShared {
  Plan plan;
  int32_t status;
  uint32_t warp_total[kWarps];
};

__device__ inline uint32_t byte_word(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

// The arguments of one slice, and for raw payloads all there is to check.
__device__ inline int32_t check_sample(const FastichCudaBatch &batch, int slice, Plan *plan) {
  const int32_t height = batch.height[slice], width = batch.width[slice];
  const int64_t offset = batch.offset[slice], size = batch.size[slice];
  *plan = Plan{kAir, height, width, 0, 0, 0, {0, 0, 0, 0}};
  if (height < 1 || width < 1 || height > batch.max_height || width > batch.max_width) return FASTICH_BAD_ARGUMENT;
  if (size < 0 || offset < 0 || size > batch.data_bytes || offset > batch.data_bytes - size) return FASTICH_BAD_ARGUMENT;
  if (batch.codec == FASTICH_LBP) return FASTICH_OK;
  if (size != (int64_t)2 * height * width) return FASTICH_DAMAGED;
  plan->kind = kRaw;
  return FASTICH_OK;
}

// The header of an LBP payload. half_side: the output side where the half plane may stand for the area mean, else 0.
__device__ inline int32_t check_header(const uint8_t *payload, int64_t size, int half_side, Plan *plan) {
  const uint32_t magic = 'L' | 'B' << 8 | 'P' << 16 | (uint32_t)'1' << 24;
  if (size < kHeader || byte_word(payload) != magic || payload[4] != 1 || payload[6] || payload[7]) return FASTICH_DAMAGED;
  const int32_t height = plan->height, width = plan->width, mode = payload[5];
  if (byte_word(payload + 8) != (uint32_t)height || byte_word(payload + 12) != (uint32_t)width) return FASTICH_DAMAGED;
  if (mode != FASTICH_FLAT && (mode != FASTICH_HALF_FIRST || height % 2 || width % 2)) return FASTICH_DAMAGED;
  const int shrink = mode == FASTICH_FLAT ? 1 : 2;
  plan->kind = mode == FASTICH_FLAT ? kFlat : kHalfFirst;
  plan->rows = height / shrink;
  plan->columns = width / shrink;
  plan->runs = (plan->columns + kRun - 1) / kRun;
  if (plan->kind == kHalfFirst && height == width && height == 2 * half_side) {
    plan->kind = kHalfPlane;
    plan->height = plan->width = half_side;
  }
  return FASTICH_OK;
}

// Inclusive prefix sum over a block, and its total.
__device__ inline uint32_t block_sum(uint32_t value, uint32_t *warp_total, uint32_t *total) {
  const uint32_t inclusive = warp_sum(value);
  if (lane_of() == kLanes - 1) warp_total[warp_of()] = inclusive;
  __syncthreads();
  uint32_t below = 0;
  *total = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_of()) below += warp_total[warp];
    *total += warp_total[warp];
  }
  __syncthreads();
  return inclusive + below;
}

// Finds the first word of each row of a stream and returns how many words it has, or -1 where a width is over 16.
__device__ inline int64_t find_rows(const uint8_t *table, int rows, int runs, uint32_t *row_start, uint32_t *warp_total) {
  uint32_t before = 0, total = 0;
  int too_wide = 0;
  for (int first = 0; first < rows; first += kThreads) {
    const int row = first + (int)threadIdx.x;
    uint32_t words = 0;
    if (row < rows)
      for (int run = 0; run < runs; ++run) {
        const uint32_t width = table[(size_t)row * runs + run];
        words += width;
        too_wide |= width > 16;
      }
    const uint32_t through = block_sum(words, warp_total, &total);
    if (row < rows) row_start[row] = before + through - words;
    before += total;
  }
  return __syncthreads_or(too_wide) ? -1 : (int64_t)before;
}

// One block a slice: checks all that decoding relies on, so that no later read can leave the payload.
__global__ void __launch_bounds__(kThreads, kBlocks)
open_payloads(const FastichCudaBatch batch, const Scratch scratch, const int half_side, int32_t *status) {
  FASTICH_SHARED(OpenShared, shared);
  const int slice = (int)blockIdx.x;
  if (threadIdx.x == 0) {
    int32_t found = check_sample(batch, slice, &shared.plan);
    if (found == FASTICH_OK && batch.codec == FASTICH_LBP)
      found = check_header(batch.data + batch.offset[slice], batch.size[slice], half_side, &shared.plan);
    shared.status = found;
  }
  __syncthreads();
  const Plan &plan = shared.plan;
  int32_t found = shared.status;
  if (found == FASTICH_OK && plan.kind != kRaw) {
    const uint8_t *payload = batch.data + batch.offset[slice];
    const int64_t size = batch.size[slice], count = (int64_t)plan.rows * plan.runs;
    uint32_t *row_start = slice_of(scratch, batch, slice).row_start;
    const int streams = plan.kind == kFlat ? 1 : kStreams;
    int64_t at = kHeader;
    for (int stream = 0; stream < streams && found == FASTICH_OK; ++stream) {
      if (threadIdx.x == 0) shared.plan.table[stream] = at;
      int64_t words = -1;
      if (size - at >= count)
        words = find_rows(payload + at, plan.rows, plan.runs, row_start + stream * plan.rows, shared.warp_total);
      if (words < 0 || size - at - count < 4 * words) found = FASTICH_DAMAGED;
      at += count + 4 * words;
    }
    if (at != size) found = FASTICH_DAMAGED;
  }
  if (threadIdx.x != 0) return;
  if (found != FASTICH_OK) shared.plan.kind = kAir;
  scratch.plan[slice] = plan;
  status[slice] = found;
}

// The 32-bit word at any byte address, by aligned loads that stay below `end`; a header of 16 bytes lies before it.
__device__ __forceinline__ uint32_t load_word(const uint8_t *at, const uint8_t *end) {
  const uint32_t odd = (uint32_t)((uintptr_t)at & 3);
  const uint32_t *aligned = reinterpret_cast<const uint32_t *>(at - odd);
  if (odd == 0) return __ldg(aligned);
  if (end - at < 8) return byte_word(at);
  return __funnelshift_r(__ldg(aligned), __ldg(aligned + 1), 8 * odd);
}

// Up to 16 runs of one row, held by a warp: lane r knows the width of run r and where its words end.
struct Runs {
  const uint8_t *words, *end;
  uint32_t width, after;

  // This lane's value of a run: the bits of its place in each plane, with the zig-zag undone.
  __device__ __forceinline__ uint32_t value(int run) const {
    const uint32_t planes = __shfl_sync(kAll, width, run);
    const uint32_t first = __shfl_sync(kAll, after, run) - planes;
    const uint32_t lane = (uint32_t)lane_of();
    const uint32_t word = lane < planes ? load_word(words + 4 * (size_t)(first + lane), end) : 0u;
    uint32_t folded = 0;
    for (uint32_t plane = 0; plane < planes; ++plane)
      folded |= (__shfl_sync(kAll, word, (int)plane) >> lane & 1u) << plane;
    return ((folded >> 1) ^ (0u - (folded & 1u))) & 0xffffu;
  }
};

// Where a row of a stream goes on: bytes of the payload, which is shorter than 2^28. The state of a row belongs to lane 0 of
// the row's warp; others get it by a shuffle, so no fence is needed.
struct Cursor {
  uint32_t widths, words;
};

struct UnpackShared {
  alignas(4) uint16_t pixel[kBand][kChunk];
  Cursor cursor[kStreams][kBand];
  uint32_t carry[kBand];  // the sum of each row so far
};

// A block's band of one payload.
struct Band {
  const uint8_t *payload, *end;
  int32_t kind, columns, first, rows;  // the last two in rows of a stream
};

// Lane 0's value for all lanes.
__device__ __forceinline__ uint32_t from_lane_0(const uint32_t &value) {
  return __shfl_sync(kAll, lane_of() == 0 ? value : 0u, 0);
}

// The next `count` runs of a row of a stream.
__device__ __forceinline__ Runs next_runs(const Band &band, int count, Cursor *cursor) {
  const uint32_t widths = from_lane_0(cursor->widths), words = from_lane_0(cursor->words);
  const uint32_t width = lane_of() < count ? band.payload[widths + lane_of()] : 0u, after = warp_sum(width);
  const uint32_t num_words = __shfl_sync(kAll, after, kLanes - 1);
  if (lane_of() == 0) *cursor = Cursor{widths + (uint32_t)count, words + 4 * num_words};
  return Runs{band.payload + words, band.end, width, after};
}

// A warp adds up `count` runs of a row of the predicted stream from left to right.
__device__ inline void sum_row(const Band &band, int row, int count, UnpackShared *shared) {
  const Runs runs = next_runs(band, count, &shared->cursor[0][row]);
  uint32_t carry = from_lane_0(shared->carry[row]);
  for (int run = 0; run < count; ++run) {
    const uint32_t sum = carry + warp_sum(runs.value(run));
    shared->pixel[row][run * kRun + lane_of()] = (uint16_t)sum;
    carry = __shfl_sync(kAll, sum, kLanes - 1);
  }
  if (lane_of() == 0) shared->carry[row] = carry;
}

// Two pixels side by side, of which `count` lie in the row; one store where the address allows it.
__device__ __forceinline__ void store_pair(uint16_t *at, uint32_t first, uint32_t second, int count) {
  if (count > 1 && ((uintptr_t)at & 3) == 0) {
    *reinterpret_cast<ushort2 *>(at) = make_ushort2((uint16_t)first, (uint16_t)second);
    return;
  }
  at[0] = (uint16_t)first;
  if (count > 1) at[1] = (uint16_t)second;
}

// Every thread adds up two columns of the band from top to bottom: to the plane, or back for `join_row`.
__device__ inline void sum_columns(const Band &band, int chunk, int pitch, uint16_t *plane, uint16_t *carry,
                                   UnpackShared *shared) {
  const int x = chunk * kRun + 2 * (int)threadIdx.x, count = band.columns - x;
  if (count <= 0) return;
  uint32_t first = 0, second = 0;
  for (int row = 0; row < band.rows; ++row) {
    ushort2 *pair = reinterpret_cast<ushort2 *>(&shared->pixel[row][2 * threadIdx.x]);
    first += pair->x;
    second += pair->y;
    if (band.kind == kHalfFirst)
      *pair = make_ushort2((uint16_t)first, (uint16_t)second);
    else
      store_pair(plane + (size_t)(band.first + row) * pitch + x, first, second, count);
  }
  carry[x] = (uint16_t)first;
  if (count > 1) carry[x + 1] = (uint16_t)second;
}

// Undoes one S-transform: low + high -> the pair.
__device__ __forceinline__ void join(uint32_t low, uint32_t high, uint32_t *a, uint32_t *b) {
  *b = low - (uint32_t)((int32_t)(int16_t)high >> 1);
  *a = *b + high;
}

// A warp turns `count` runs of a half-resolution row and its three details into two rows of the slice.
__device__ inline void join_row(const Band &band, int row, int chunk, int count, int pitch, uint16_t *plane,
                                UnpackShared *shared) {
  const Runs vertical = next_runs(band, count, &shared->cursor[1][row]);
  const Runs horizontal = next_runs(band, count, &shared->cursor[2][row]);
  const Runs diagonal = next_runs(band, count, &shared->cursor[3][row]);
  for (int run = 0; run < count; ++run) {
    const uint32_t v = vertical.value(run), h = horizontal.value(run), d = diagonal.value(run);
    const int x = (chunk + run) * kRun + lane_of();
    if (x >= band.columns) continue;
    uint32_t low0, low1, high0, high1, a, b;
    join(shared->pixel[row][run * kRun + lane_of()], v, &low0, &low1);
    join(h, d, &high0, &high1);
    uint16_t *top = plane + (size_t)2 * (band.first + row) * pitch + 2 * x;
    join(low0, high0, &a, &b);
    store_pair(top, a, b, 2);
    join(low1, high1, &a, &b);
    store_pair(top + pitch, a, b, 2);
  }
}

// Row y of the plan's streams becomes `row` of the block.
__device__ inline void start_row(const Plan &plan, int y, int row, const uint32_t *row_start, UnpackShared *shared) {
  const uint32_t all = (uint32_t)(plan.rows * plan.runs), before = (uint32_t)(y * plan.runs);
  const int streams = plan.kind == kHalfFirst ? kStreams : 1;
  for (int stream = 0; stream < streams; ++stream) {
    const uint32_t table = (uint32_t)plan.table[stream];
    shared->cursor[stream][row] = Cursor{table + before, table + all + 4 * row_start[stream * plan.rows + y]};
  }
  shared->carry[row] = 0;
}

// One block a band of one slice. Rows belong to warps, columns to threads; wide slices go in chunks of 512 columns.
__global__ void __launch_bounds__(kThreads, kBlocks) unpack_bands(const FastichCudaBatch batch, const Scratch scratch) {
  FASTICH_SHARED(UnpackShared, shared);
  const int slice = (int)blockIdx.y, first = (int)blockIdx.x * kBand;
  const Plan &plan = scratch.plan[slice];
  const int rows = min(kBand, plan.rows - first), runs = plan.runs;
  if (plan.kind < kFlat || rows <= 0) return;
  const uint8_t *payload = batch.data + batch.offset[slice];
  const Band band{payload, payload + batch.size[slice], plan.kind, plan.columns, first, rows};
  const Slice out = slice_of(scratch, batch, slice);
  uint16_t *carry = out.carry + (size_t)blockIdx.x * batch.max_width;
  if (lane_of() == 0)
    for (int row = warp_of(); row < rows; row += kWarps) start_row(plan, first + row, row, out.row_start, &shared);
  for (int chunk = 0; chunk < runs; chunk += kChunkRuns) {
    const int count = min(kChunkRuns, runs - chunk);
    for (int row = warp_of(); row < rows; row += kWarps) sum_row(band, row, count, &shared);
    __syncthreads();
    sum_columns(band, chunk, scratch.pitch, out.plane, carry, &shared);
    __syncthreads();
    if (band.kind != kHalfFirst) continue;
    for (int row = warp_of(); row < rows; row += kWarps)
      join_row(band, row, chunk, count, scratch.pitch, out.plane, &shared);
  }
}

// One thread a column: each band's carry becomes the sum of the last rows of all bands above it. Eight loads at a time
// are under way; one by one, each would wait for the store before it.
__global__ void __launch_bounds__(kThreads, kBlocks) carry_bands(const FastichCudaBatch batch, const Scratch scratch) {
  constexpr int kAtOnce = 8;
  const int slice = (int)blockIdx.y, x = (int)(blockIdx.x * kThreads + threadIdx.x);
  const int kind = scratch.plan[slice].kind, rows = scratch.plan[slice].rows;
  if (kind < kFlat || x >= scratch.plan[slice].columns) return;
  const int bands = (rows + kBand - 1) / kBand;
  uint16_t *carry = slice_of(scratch, batch, slice).carry + x;
  uint32_t sum = 0;
  for (int first = 0; first < bands; first += kAtOnce) {
    uint32_t last_row[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      last_row[i] = first + i < bands ? carry[(size_t)(first + i) * batch.max_width] : 0u;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < bands) carry[(size_t)(first + i) * batch.max_width] = (uint16_t)sum;
      sum += last_row[i];
    }
  }
}

}  // namespace fastich_gpu

#endif  // FASTICH_GPU_LBP_CUH_
