// The same entries as fuzz_core.cc, driven by libFuzzer, which looks for bytes that reach new code: `make fuzz`.
// The input's first 10 bytes choose sides, codec, output and warp; the rest is the payload, in a block of exactly its size.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "core.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 10) return 0;
  const uint32_t height = 1 + data[0] % 80, width = 1 + data[1] % 80;
  const int32_t codec = data[2] % 2, side = 1 + data[3] % 48, dtype = data[4] % 3, layout = data[5] % 2;
  const bool warped = data[6] % 2;
  float matrix[6] = {std::cos(data[7] / 40.0f), std::sin(data[7] / 40.0f), data[8] - 128.0f,
                     -std::sin(data[7] / 40.0f), std::cos(data[7] / 40.0f), data[9] - 128.0f};
  data += 10;
  size -= 10;
  std::unique_ptr<uint8_t[]> payload(new uint8_t[size]);
  if (size) std::memcpy(payload.get(), data, size);
  std::unique_ptr<uint16_t[]> pixels(new uint16_t[height * width]), half(new uint16_t[height * width / 4 + 1]);
  const int32_t status = fastich_decode(payload.get(), size, codec, height, width, pixels.get());
  fastich_lbp_decode_half(payload.get(), size, height, width, half.get());
  const float low[3] = {0, -20, -800}, wide[3] = {80, 200, 2800}, mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.2f, 0.2f, 0.2f};
  const FastichWindowing windowing{side, 3, low, wide, mean, std, dtype, layout};
  std::unique_ptr<float[]> image(new float[(size_t)side * side * 3]);
  const int32_t also = fastich_decode_window(payload.get(), size, codec, height, width, warped ? matrix : nullptr, 1.0f,
                                             0.0f, &windowing, image.get());
  if ((status == FASTICH_OK) != (also == FASTICH_OK)) __builtin_trap();  // both accept a payload, or neither does
  if (status == FASTICH_OK && codec == FASTICH_LBP) {  // what decodes must encode to something that decodes alike
    const size_t bound = fastich_lbp_bound(height, width);
    std::unique_ptr<uint8_t[]> again(new uint8_t[bound]);
    std::unique_ptr<uint16_t[]> twice(new uint16_t[height * width]);
    size_t written = 0;
    if (fastich_lbp_encode(pixels.get(), height, width, 0, again.get(), bound, &written)) __builtin_trap();
    if (fastich_decode(again.get(), written, codec, height, width, twice.get())) __builtin_trap();
    if (std::memcmp(pixels.get(), twice.get(), 2 * (size_t)height * width)) __builtin_trap();
  }
  return 0;
}
