// The native core of fastich: the LBP codec and the fused decode-resize-window pass, with a C interface.
//
// Includes no DALI, torch or Python header: it builds with any C++17 compiler and is loaded through ctypes (fastich/ops.py)
// and by the DALI operator. No function reads or writes outside the sizes that it is given, whatever the bytes say.
// The byte layout is docs/records.md; the numbers are those of fastich/windowing.py.
//
// Shapes: H rows, W columns, S the square output side, C channels.
#ifndef FASTICH_CORE_H_
#define FASTICH_CORE_H_

#include <cstddef>
#include <cstdint>

#define FASTICH_API __attribute__((visibility("default")))

extern "C" {

// Status of every call; fastich/ops.py asks the numpy reference to word the error.
enum FastichStatus : int32_t {
  FASTICH_OK = 0,
  FASTICH_DAMAGED = 1,      // the payload is not what the encoder makes for this shape
  FASTICH_BAD_ARGUMENT = 2  // a size, enum or pointer makes no sense
};

enum FastichCodec : int32_t { FASTICH_RAW = 0, FASTICH_LBP = 1 };
enum FastichMode : int32_t { FASTICH_FLAT = 0, FASTICH_HALF_FIRST = 1 };
enum FastichDtype : int32_t { FASTICH_FLOAT32 = 0, FASTICH_FLOAT16 = 1, FASTICH_BFLOAT16 = 2 };
enum FastichLayout : int32_t { FASTICH_CHW = 0, FASTICH_HWC = 1 };

// The instruction set that runs: "avx512" (with VBMI and GFNI), "avx2" or "baseline". FASTICH_CPU in the environment lowers it.
FASTICH_API const char *fastich_cpu();

// The most bytes that encoding an [height, width] slice can take; 0 where the size is refused.
FASTICH_API size_t fastich_lbp_bound(uint32_t height, uint32_t width);

// Encodes pixels [height, width] into out (capacity bytes), sets *written.
FASTICH_API int32_t fastich_lbp_encode(const uint16_t *pixels, uint32_t height, uint32_t width, int32_t mode, uint8_t *out,
                           size_t capacity, size_t *written);

// Decodes a payload of either mode into pixels [height, width].
FASTICH_API int32_t fastich_decode(const uint8_t *payload, size_t size, int32_t codec, uint32_t height, uint32_t width,
                       uint16_t *pixels);

// Decodes only the half-resolution plane [height / 2, width / 2] of a half-first payload.
FASTICH_API int32_t fastich_lbp_decode_half(const uint8_t *payload, size_t size, uint32_t height, uint32_t width, uint16_t *pixels);

struct FastichWindowing {
  int32_t size;           // S
  int32_t num_windows;    // C, at most 16
  const float *low_hu;    // [C] center - width / 2
  const float *width_hu;  // [C]
  const float *mean;      // [C]
  const float *std;       // [C]
  int32_t dtype;          // FastichDtype
  int32_t layout;         // FastichLayout
};

// One slice, bytes to network input: decode, warp (matrix: 2 x 3 output to input in pixels, or null), area mean, gain and offset
// in HU, windows, normalisation. out holds size * size * num_windows elements of the dtype.
FASTICH_API int32_t fastich_decode_window(const uint8_t *payload, size_t size, int32_t codec, uint32_t height, uint32_t width,
                              const float *matrix, float gain, float offset_hu, const FastichWindowing *windowing,
                              void *out);

}  // extern "C"

#endif  // FASTICH_CORE_H_
