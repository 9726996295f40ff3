// Mutates payloads of both modes and hands them to every entry of core.h, in heap blocks of exactly their size, so that
// the address sanitizer sees any byte read or written outside. Built and run by tests/test_ops.py.

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core.h"

int main() {
  std::mt19937 random(1);
  const float low[3] = {0, -20, -800}, width[3] = {80, 200, 2800}, mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.2f, 0.2f, 0.2f};
  int accepted = 0, mutations = 0;
  for (int round = 0; round < 400; ++round) {
    const uint32_t height = 2 * (1 + random() % 20), columns = 2 * (1 + random() % 40);
    std::vector<uint16_t> pixels(height * columns);
    const uint32_t spread = 1u << (random() % 17);
    for (auto &pixel : pixels) pixel = (uint16_t)(1000 + random() % spread);
    std::vector<uint8_t> space(fastich_lbp_bound(height, columns));
    size_t size = 0;
    if (fastich_lbp_encode(pixels.data(), height, columns, round % 2, space.data(), space.size(), &size)) return 1;
    for (int i = 0; i < 50; ++i, ++mutations) {
      std::vector<uint8_t> bytes(space.begin(), space.begin() + (long)size);
      for (unsigned n = random() % 4; n > 0; --n) bytes[random() % bytes.size()] = (uint8_t)random();
      if (random() % 3 == 0) bytes.resize(random() % (bytes.size() + 1));
      std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
      if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
      std::unique_ptr<uint16_t[]> out(new uint16_t[height * columns]), half(new uint16_t[height * columns / 4]);
      accepted += fastich_decode(exact.get(), bytes.size(), FASTICH_LBP, height, columns, out.get()) == FASTICH_OK;
      fastich_lbp_decode_half(exact.get(), bytes.size(), height, columns, half.get());
      const int32_t side = 1 + (int32_t)(random() % 40);
      const FastichWindowing windowing{side, 3, low, width, mean, std, (int32_t)(random() % 3), (int32_t)(random() % 2)};
      std::unique_ptr<float[]> image(new float[(size_t)side * side * 3]);
      float matrix[6];
      for (float &value : matrix) value = (float)((int)(random() % 2000) - 1000) / (random() % 2 ? 7.0f : 700.0f);
      fastich_decode_window(exact.get(), bytes.size(), (int32_t)(random() % 2), height, columns,
                            random() % 2 ? matrix : nullptr, 1.0f, 0.0f, &windowing, image.get());
    }
  }
  std::printf("%d mutations, %d still decodable\n", mutations, accepted);
  return 0;
}
