// The CUDA half of core.h: batches of payloads in device memory to pixels or to the network's input, with a C interface.
//
// Includes no DALI, torch or Python header and links the CUDA runtime statically. Nothing is allocated and the host never
// waits: every call puts its kernels on the given stream (of the calling thread's current device) and returns. Numbers,
// formats and refusals are those of core.h; no byte outside [0, data_bytes) is read, whatever the payloads say.
//
// Four kernels (gpu_lbp.cuh, gpu_window.cuh): `open` checks a payload and finds its rows, `unpack` is the one pass over
// packed bytes (bands of 16 rows), `carry` adds up the bands' last rows, `window` is the one pass over pixels.
//
// Bytes moved for one 512 x 512 slice at ratio 3.5 flat (2.7 half-first), to 256 px, three windows; what bandwidth allows:
//                                   packed   pixels w + r   output    sum       A40 696 GB/s    H100 3.35 TB/s
//   flat, float32                    158 kB     1,180 kB     786 kB   2.12 MB    328,000 /s     1,580,000 /s
//   flat, float16                    158 kB     1,180 kB     393 kB   1.73 MB    402,000 /s     1,930,000 /s
//   half-first, half plane, float16   66 kB       295 kB     393 kB   0.75 MB    923,000 /s     4,440,000 /s
// (packed: what is read of the payload, width tables twice; pixels: uint16 written and read once, and the bands' carries,
// which are written and read twice.)
// These are bounds from data sheets, not measurements: no GPU has run this yet.
//
// Shapes: N slices, H rows, W columns, S the square output side, C channels.
#ifndef FASTICH_GPU_H_
#define FASTICH_GPU_H_

#include "core.h"

extern "C" {

// N payloads in device memory. The two bounds stand for what the host does not see: they size the grid and the scratch.
struct FastichCudaBatch {
  const uint8_t *data;      // device, [data_bytes]
  int64_t data_bytes;
  const int64_t *offset;    // device, [N] first byte of each payload in data
  const int64_t *size;      // device, [N] bytes
  const int32_t *height;    // device, [N]
  const int32_t *width;     // device, [N]
  int32_t num;              // N, at most 65535
  int32_t codec;            // FastichCodec, of all
  int32_t max_height;       // no slice is higher
  int32_t max_width;        // or wider; max_height * max_width at most 2^26
};

// Bytes of device memory that either call needs, aligned to 256; 0 where the batch is refused. Only the last four fields
// of the batch are looked at.
FASTICH_API size_t fastich_cuda_scratch_bytes(const FastichCudaBatch *batch);

// Decodes to pixels, device uint16 [N, max_height, max_width]: each slice in the top left corner, air (0) beside and below.
// status, device int32 [N], gets FASTICH_OK, FASTICH_DAMAGED or FASTICH_BAD_ARGUMENT for each slice; one that is not OK
// is all air.
FASTICH_API int32_t fastich_cuda_decode(const FastichCudaBatch *batch, uint16_t *pixels, int32_t *status, void *scratch,
                                        size_t scratch_bytes, void *stream);

// Decodes to the network's input: out, device, holds N * S * S * C elements. matrix: device float [N, 6] or null, output to
// input in pixels. intensity: device float [N, 2] (gain, offset in HU) or null. The windowing and its arrays lie in host
// memory and may go once the call is back. A slice that is not OK becomes air (-1024 HU, whatever its intensity).
FASTICH_API int32_t fastich_cuda_decode_window(const FastichCudaBatch *batch, const float *matrix, const float *intensity,
                                               const FastichWindowing *windowing, void *out, int32_t *status, void *scratch,
                                               size_t scratch_bytes, void *stream);

// Both calls return FASTICH_OK, FASTICH_BAD_ARGUMENT, or FASTICH_CUDA + the runtime's error code; this words it.
constexpr int32_t FASTICH_CUDA = 1000;
FASTICH_API const char *fastich_cuda_text(int32_t status);

// "cuda-13.0", the runtime that it was built with; "emulated" where tests build it for the CPU.
FASTICH_API const char *fastich_cuda_backend();

}  // extern "C"

#endif  // FASTICH_GPU_H_
