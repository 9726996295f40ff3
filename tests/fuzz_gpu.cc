// Mutates payloads of both modes and of raw pixels and hands batches of them to the emulated kernels of gpu.cu, every array
// in a heap block of exactly its size, so that the address sanitizer sees any byte read or written outside. core.cc must
// say the same of every slice, pixels bit for bit. Built and run by tests/test_kernels_gpu.py.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "gpu.h"

namespace {

std::mt19937 random_bits(1);

uint32_t below(uint32_t end) { return random_bits() % end; }

struct Sample {
  std::vector<uint8_t> bytes;
  int32_t height, width;
};

Sample mutated(int32_t codec) {
  Sample sample{{}, (int32_t)(2 + 2 * below(24)), (int32_t)(2 + 2 * below(30))};
  const int32_t mode = (int32_t)below(2);
  if (mode == FASTICH_FLAT) sample.width -= (int32_t)below(2);
  std::vector<uint16_t> pixels((size_t)sample.height * sample.width);
  const uint32_t spread = 1u << below(17);
  for (auto &pixel : pixels) pixel = (uint16_t)(1000 + below(spread));
  sample.bytes.resize(2 * pixels.size());
  std::memcpy(sample.bytes.data(), pixels.data(), sample.bytes.size());
  if (codec == FASTICH_LBP) {
    sample.bytes.resize(fastich_lbp_bound((uint32_t)sample.height, (uint32_t)sample.width));
    size_t written = 0;
    fastich_lbp_encode(pixels.data(), (uint32_t)sample.height, (uint32_t)sample.width, mode, sample.bytes.data(),
                       sample.bytes.size(), &written);
    sample.bytes.resize(written);
  }
  for (uint32_t n = below(4); n > 0; --n) sample.bytes[below((uint32_t)sample.bytes.size())] = (uint8_t)below(256);
  if (below(4) == 0) sample.bytes.resize(below((uint32_t)sample.bytes.size() + 1));
  return sample;
}

template <typename T>
std::unique_ptr<T[]> exact(size_t count) {
  std::unique_ptr<T[]> memory(new T[count]);
  std::memset(memory.get(), 0xa5, count * sizeof(T));
  return memory;
}

// One batch through both calls; the number of slices that are still decodable, or -1 where core.cc says otherwise.
int run(const std::vector<Sample> &samples, int32_t codec) {
  const size_t num = samples.size();
  std::vector<int64_t> offset(num), size(num);
  std::vector<int32_t> height(num), width(num);
  int64_t total = 0;
  int32_t max_height = 0, max_width = 0;
  for (size_t i = 0; i < num; ++i) {
    offset[i] = total;
    total += size[i] = (int64_t)samples[i].bytes.size();
    max_height = std::max(max_height, height[i] = samples[i].height);
    max_width = std::max(max_width, width[i] = samples[i].width);
  }
  const auto data = exact<uint8_t>((size_t)total);
  for (size_t i = 0; i < num; ++i)
    if (size[i]) std::memcpy(data.get() + offset[i], samples[i].bytes.data(), (size_t)size[i]);
  const FastichCudaBatch batch{data.get(),   total,        offset.data(), size.data(), height.data(),
                               width.data(), (int32_t)num, codec,         max_height,  max_width};
  const size_t bytes = fastich_cuda_scratch_bytes(&batch);
  void *scratch = std::aligned_alloc(256, bytes);
  std::memset(scratch, 0xa5, bytes);
  const auto status = exact<int32_t>(num);
  const size_t area = (size_t)max_height * max_width;
  const auto pixels = exact<uint16_t>(num * area);
  if (fastich_cuda_decode(&batch, pixels.get(), status.get(), scratch, bytes, nullptr)) return -1;
  int accepted = 0;
  for (size_t i = 0; i < num; ++i) {
    const size_t own = (size_t)height[i] * width[i];
    std::vector<uint16_t> expected(own);
    const int32_t refused = fastich_decode(data.get() + offset[i], (size_t)size[i], codec, (uint32_t)height[i],
                                           (uint32_t)width[i], expected.data());
    if (refused != status[i]) return -1;
    if (refused) std::fill(expected.begin(), expected.end(), (uint16_t)0);
    for (int32_t y = 0; y < height[i]; ++y)
      if (std::memcmp(&pixels[i * area + (size_t)y * max_width], &expected[(size_t)y * width[i]], 2 * (size_t)width[i]))
        return -1;
    accepted += !refused;
  }
  const float low[3] = {0, -20, -800}, windows[3] = {80, 200, 2800}, mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.2f, 0.2f, 0.2f};
  const int32_t side = 1 + (int32_t)below(40), dtype = (int32_t)below(3), layout = (int32_t)below(2);
  const FastichWindowing windowing{side, 3, low, windows, mean, std, dtype, layout};
  const auto matrix = exact<float>(6 * num), intensity = exact<float>(2 * num);
  for (size_t i = 0; i < 6 * num; ++i) matrix[i] = (float)((int)below(2000) - 1000) / (below(2) ? 7.0f : 700.0f);
  for (size_t i = 0; i < 2 * num; ++i) intensity[i] = (float)below(3);
  const auto out = exact<uint16_t>(num * side * side * 3 * (dtype == FASTICH_FLOAT32 ? 2 : 1));
  const bool warped = below(2), tuned = below(2);
  const int32_t failed = fastich_cuda_decode_window(&batch, warped ? matrix.get() : nullptr,
                                                    tuned ? intensity.get() : nullptr, &windowing, out.get(),
                                                    status.get(), scratch, bytes, nullptr);
  std::free(scratch);
  if (failed) return -1;
  const size_t elements = (size_t)side * side * 3;
  for (size_t i = 0; i < num && dtype == FASTICH_FLOAT32; ++i) {
    std::vector<float> expected(elements);
    const int32_t refused = fastich_decode_window(
        data.get() + offset[i], (size_t)size[i], codec, (uint32_t)height[i], (uint32_t)width[i],
        warped ? &matrix[6 * i] : nullptr, tuned ? intensity[2 * i] : 1.0f, tuned ? intensity[2 * i + 1] : 0.0f, &windowing,
        expected.data());
    if (refused != status[i]) return -1;
    const float *found = reinterpret_cast<const float *>(out.get()) + i * elements;
    for (size_t e = 0; e < elements && !refused; ++e)
      if (!(std::fabs(found[e] - expected[e]) < 2e-3f)) return -1;  // 65535 in float32 is 0.004 HU, 0.0003 here
  }
  return accepted;
}

}  // namespace

int main() {
  int accepted = 0, mutations = 0;
  for (int round = 0; round < 150; ++round) {
    const int32_t codec = round % 8 == 0 ? FASTICH_RAW : FASTICH_LBP;
    std::vector<Sample> samples(1 + below(12));
    for (auto &sample : samples) sample = mutated(codec);
    const int found = run(samples, codec);
    if (found < 0) return 1;
    accepted += found;
    mutations += (int)samples.size();
  }
  std::printf("%d mutations, %d still decodable\n", mutations, accepted);
  return 0;
}
