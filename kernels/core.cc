// The C interface of core.h: every argument and byte is checked here or in lbp.h, then rows flow through window.h.

#include "core.h"

#include <new>

#include "window.h"

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
  SliceReader(payload, codec, opened, width).read_all(height, pixels);
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
  if (!std::isfinite(gain) || !std::isfinite(offset_hu)) return FASTICH_BAD_ARGUMENT;
  const uint32_t side = (uint32_t)windowing->size;
  const Intensity change{gain, offset_hu};
  Output output(*windowing, out);
  if (codec == FASTICH_LBP && opened.mode == FASTICH_HALF_FIRST && !matrix && height == width && height == 2 * side) {
    half_plane(opened.streams[0], side, change, &output);
    return FASTICH_OK;
  }
  SliceReader reader(payload, codec, opened, width);
  if (matrix)
    warped_mean(&reader, height, width, matrix, side, change, &output);
  else if (height == width && height % side == 0 && height / side <= kMaxFactor)
    block_mean(&reader, height / side, side, change, &output);
  else
    area_mean([&] { return reader.next(); }, height, width, side, change, &output);
  return FASTICH_OK;
} catch (const std::bad_alloc &) {
  return FASTICH_BAD_ARGUMENT;
}

}  // extern "C"
