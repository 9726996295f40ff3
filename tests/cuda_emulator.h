// Runs the kernels of kernels/gpu.cu on the CPU, thread by thread: what they are tested with where there is no GPU.
//
// Each thread of a block is a fiber with a stack of its own that runs until it meets a barrier or a warp intrinsic; blocks
// follow each other. To find what luck would hide, lanes, warps and blocks run in an order drawn anew each time (a missing
// barrier then gives wrong numbers), shared memory is a heap block of exactly its size full of garbage (so the address
// sanitizer guards it), and a warp or block whose threads wait for different things ends the program.
// Not modelled: memory order within a warp between barriers, alignment beyond what the undefined-behaviour sanitizer
// checks, the hardware's own float conversions, speed. Only what gpu.cu uses is here; x86-64 only.
#ifndef FASTICH_CUDA_EMULATOR_H_
#define FASTICH_CUDA_EMULATOR_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  uint32_t x, y, z;
  dim3(int64_t x_ = 1, int64_t y_ = 1) : x((uint32_t)x_), y((uint32_t)y_), z(1) {}
};

struct alignas(4) ushort2 {
  uint16_t x, y;
};
inline ushort2 make_ushort2(uint16_t x, uint16_t y) { return ushort2{x, y}; }

using std::max;
using std::min;

typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "emulated"; }

namespace emulator {

constexpr int kLanes = 32, kThreads = 256, kWarps = kThreads / kLanes;
constexpr size_t kStackBytes = 64 << 10;

// Saves this stack's registers and goes on where `load` was saved.
__attribute__((naked, noinline)) inline void switch_stack(void ** /*save: rdi*/, void * /*load: rsi*/) {
  __asm__(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

enum class Wait { kNothing, kWarp, kBlock, kEnd };

struct Fiber {
  void *stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Wait wait = Wait::kEnd;
  uint32_t index = 0, meetings = 0;
  bool vote = false;
};

struct Block {
  Fiber fibers[kThreads];
  Fiber *current = nullptr;
  void *home = nullptr;
  std::function<void()> body;
  std::unique_ptr<char[]> shared;
  size_t shared_bytes = 0;
  uint32_t slots[kWarps][2][kLanes] = {};  // two: a lane may be one meeting ahead of one that has not read yet
  bool any_vote = false;
  uint64_t random = 1;
};

inline Block &block() {
  static Block only;
  return only;
}

struct Place {
  uint32_t x, y;
};
inline Place block_index;

[[noreturn]] inline void fail(const char *why) {
  std::fprintf(stderr, "cuda_emulator: %s (block %u, %u)\n", why, block_index.x, block_index.y);
  std::abort();
}

inline uint32_t draw(uint32_t below) {  // xorshift64*
  uint64_t &s = block().random;
  s ^= s >> 12;
  s ^= s << 25;
  s ^= s >> 27;
  return (uint32_t)((s * 2685821657736338717ull) >> 32) % below;
}

inline void pause(Wait wait) {
  Fiber *fiber = block().current;
  fiber->wait = wait;
  switch_stack(&fiber->stack_pointer, block().home);
}

inline void enter() {
  block().body();
  pause(Wait::kEnd);
  std::abort();  // nobody resumes an ended fiber
}

inline void prepare(Fiber *fiber, uint32_t index) {
  auto top = reinterpret_cast<uintptr_t>(fiber->stack.get() + kStackBytes) / 16 * 16;
  void **at = reinterpret_cast<void **>(top);
  *--at = nullptr;  // where `enter` would return to
  *--at = reinterpret_cast<void *>(&enter);
  for (int i = 0; i < 6; ++i) *--at = nullptr;
  fiber->stack_pointer = at;
  fiber->wait = Wait::kNothing;
  fiber->index = index;
  fiber->meetings = 0;
}

inline void resume(Fiber *fiber) {
  block().current = fiber;
  switch_stack(&block().home, fiber->stack_pointer);
}

// Runs a warp until all its lanes wait for the block or have ended.
inline void run_warp(int warp) {
  Fiber *lanes = block().fibers + warp * kLanes;
  for (;;) {
    const uint32_t first = draw(kLanes), step = 2 * draw(kLanes / 2) + 1;
    int at_warp = 0;
    for (uint32_t i = 0; i < kLanes; ++i) {
      Fiber *lane = lanes + (first + i * step) % kLanes;
      if (lane->wait == Wait::kNothing) resume(lane);
      at_warp += lane->wait == Wait::kWarp;
    }
    if (at_warp == 0) return;
    if (at_warp != kLanes) fail("a warp intrinsic that some lanes of the warp do not reach");
    for (int i = 0; i < kLanes; ++i) lanes[i].wait = Wait::kNothing;
  }
}

inline void run_block() {
  Block &own = block();
  for (int i = 0; i < kThreads; ++i) prepare(own.fibers + i, (uint32_t)i);
  for (;;) {
    const uint32_t first = draw(kWarps), step = 2 * draw(kWarps / 2) + 1;
    for (uint32_t i = 0; i < kWarps; ++i) run_warp((int)((first + i * step) % kWarps));
    int ended = 0;
    own.any_vote = false;
    for (Fiber &fiber : own.fibers) {
      ended += fiber.wait == Wait::kEnd;
      own.any_vote |= fiber.vote;
      fiber.vote = false;
    }
    if (ended == kThreads) break;
    if (ended) fail("a block barrier that some threads do not reach");
    for (Fiber &fiber : own.fibers) fiber.wait = Wait::kNothing;
  }
  own.shared.reset();
}

// All blocks of a grid in an order drawn anew.
inline void launch(dim3 grid, std::function<void()> body) {
  block().body = std::move(body);
  const uint64_t count = (uint64_t)grid.x * grid.y;
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t other = draw((uint32_t)i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  for (const uint64_t number : order) {
    block_index = Place{(uint32_t)(number % grid.x), (uint32_t)(number / grid.x)};
    run_block();
  }
}

template <typename Type>
Type &shared() {
  Block &own = block();
  if (!own.shared) {
    own.shared.reset(new char[sizeof(Type)]);
    own.shared_bytes = sizeof(Type);
    std::memset(own.shared.get(), 0xa5, sizeof(Type));
  }
  if (own.shared_bytes != sizeof(Type)) fail("one block of shared memory a kernel, please");
  return *reinterpret_cast<Type *>(own.shared.get());
}

inline uint32_t meet(uint32_t value, uint32_t from) {
  Fiber *fiber = block().current;
  auto &slots = block().slots[fiber->index / kLanes][fiber->meetings++ % 2];
  slots[fiber->index % kLanes] = value;
  pause(Wait::kWarp);
  return slots[from];
}

}  // namespace emulator

#define FASTICH_SHARED(type, name) type &name = emulator::shared<type>()
#define FASTICH_LAUNCH(kernel, grid, stream, ...) \
  ((void)(stream), emulator::launch(grid, [=] { kernel(__VA_ARGS__); }))
#define blockIdx (emulator::block_index)
#define threadIdx (emulator::Place{emulator::block().current->index, 0})

inline uint32_t lane_in_warp() { return emulator::block().current->index % emulator::kLanes; }

inline uint32_t __shfl_sync(uint32_t mask, uint32_t value, int from) {
  if (mask != 0xffffffffu || from < 0 || from >= emulator::kLanes) emulator::fail("a shuffle from a lane that is not there");
  return emulator::meet(value, (uint32_t)from);
}

inline uint32_t __shfl_up_sync(uint32_t mask, uint32_t value, int step) {
  const int from = (int)lane_in_warp() - step;
  return __shfl_sync(mask, value, from < 0 ? (int)lane_in_warp() : from);
}

// Barriers are numbered in the order of the source. FASTICH_SKIP_BARRIER leaves one out: a test demands that it is missed.
inline bool skipped(int barrier) {
  static const char *const wish = std::getenv("FASTICH_SKIP_BARRIER");
  return wish && std::atoi(wish) == barrier;
}

inline void sync_block(int barrier) {
  if (!skipped(barrier)) emulator::pause(emulator::Wait::kBlock);
}

inline int sync_block_or(int vote, int barrier) {
  if (skipped(barrier)) return vote;
  emulator::block().current->vote = vote != 0;
  emulator::pause(emulator::Wait::kBlock);
  return emulator::block().any_vote;
}

#define __syncthreads() sync_block(__COUNTER__)
#define __syncthreads_or(vote) sync_block_or(vote, __COUNTER__)

inline uint32_t __ldg(const uint32_t *at) { return *at; }

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}

inline uint16_t fastich_float16(float value) {  // IEEE 754 binary16, round to nearest even, by the CPU
  const _Float16 half = (_Float16)value;
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

inline uint16_t fastich_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif  // FASTICH_CUDA_EMULATOR_H_
