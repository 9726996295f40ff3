// The GPU half of fastich.decode_window: a thin wrap over gpu.h, built where nvcc is found. No GPU has run it yet: here it
// was compiled, loaded and asked for its schema only; the kernels below it run in tests on an emulator.
//
// Payloads lie on the GPU, in one buffer or many; shapes, matrices and intensities come from the host and go up in one
// pinned copy. Scratch is DALI's own pooled memory. The status of the batch is read back and waited for before the
// operator returns, so damage names its sample in its own iteration, as on the CPU, and no batch with a slice of air in
// the place of a damaged one ever leaves the pipeline. What waits is DALI's GPU stage, for the upload and the kernels of
// one batch; readers go on in their threads, and the consumer is not given a batch before that moment anyway.

#include <algorithm>

#include "dali/core/cuda_error.h"
#include "dali/kernels/dynamic_scratchpad.h"
#include "dali_op.h"
#include "gpu.h"

namespace fastich {

using dali::Workspace;

// The arrays [N] of FastichCudaBatch and its companions, one behind the other in one block of memory.
struct Tables {
  int64_t *offset, *size;
  int32_t *height, *width;
  float *matrix, *intensity;

  static size_t bytes(size_t num) { return num * (2 * sizeof(int64_t) + 2 * sizeof(int32_t) + 8 * sizeof(float)); }

  Tables(void *memory, size_t num) {
    offset = static_cast<int64_t *>(memory);
    size = offset + num;
    height = reinterpret_cast<int32_t *>(size + num);
    width = height + num;
    matrix = reinterpret_cast<float *>(width + num);
    intensity = matrix + 6 * num;
  }
};

class DecodeWindowGpu : public dali::Operator<dali::GPUBackend> {
 public:
  explicit DecodeWindowGpu(const dali::OpSpec &spec) : dali::Operator<dali::GPUBackend>(spec), arguments_(spec) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const Workspace &ws) override {
    arguments_.describe(ws.Input<dali::GPUBackend>(0).num_samples(), &outputs);
    return true;
  }

  void RunImpl(Workspace &ws) override {
    const auto &payload = ws.Input<dali::GPUBackend>(0);
    auto &output = ws.Output<dali::GPUBackend>(0);
    output.SetLayout(arguments_.chw ? "CHW" : "HWC");
    const int num = payload.num_samples();
    if (num == 0) return;
    DALI_ENFORCE(payload.type() == DALI_UINT8, "payload must be uint8");
    DALI_ENFORCE(output.IsContiguous(), "DALI gave an output that is not contiguous");
    dali::kernels::DynamicScratchpad scratchpad(ws.stream());
    char *host = scratchpad.AllocatePinned<char>(Tables::bytes(num), 256);
    char *device = scratchpad.AllocateGPU<char>(Tables::bytes(num), 256);
    FastichCudaBatch batch = place(payload, Tables(device, num));
    fill(ws, payload, batch.data, Tables(host, num), &batch);
    CUDA_CALL(cudaMemcpyAsync(device, host, Tables::bytes(num), cudaMemcpyHostToDevice, ws.stream()));
    launch(ws, batch, Tables(device, num), output.raw_mutable_tensor(0), &scratchpad);
  }

 private:
  // The samples as offsets from the first of them in memory.
  static FastichCudaBatch place(const dali::TensorList<dali::GPUBackend> &payload, const Tables &device) {
    const uint8_t *first = nullptr, *end = nullptr;
    for (int i = 0; i < payload.num_samples(); ++i) {
      const int64_t size = payload.tensor_shape(i).num_elements();
      if (size == 0) continue;
      const uint8_t *at = payload.tensor<uint8_t>(i);
      first = first ? std::min(first, at) : at;
      end = std::max(end, at + size);
    }
    FastichCudaBatch batch{first, end - first, device.offset, device.size, device.height, device.width,
                           payload.num_samples(), 0, 1, 1};
    if (!first) batch.data = reinterpret_cast<const uint8_t *>(device.offset);  // all empty: nothing of it is read
    return batch;
  }

  // A slice without a matrix or intensity in a batch with some gets the one that changes nothing.
  void fill(const Workspace &ws, const dali::TensorList<dali::GPUBackend> &payload, const uint8_t *first, const Tables &host,
            FastichCudaBatch *batch) const {
    static constexpr float kSame[6] = {1, 0, 0, 0, 1, 0}, kPlain[2] = {1, 0};
    batch->codec = arguments_.codec;
    for (int i = 0; i < batch->num; ++i) {
      const SampleInputs inputs(ws, i);
      host.size[i] = payload.tensor_shape(i).num_elements();
      host.offset[i] = host.size[i] ? payload.tensor<uint8_t>(i) - first : 0;
      host.height[i] = inputs.height;
      host.width[i] = inputs.width;
      std::copy_n(inputs.matrix ? inputs.matrix : kSame, 6, host.matrix + 6 * i);
      std::copy_n(inputs.intensity ? inputs.intensity : kPlain, 2, host.intensity + 2 * i);
      batch->max_height = std::max(batch->max_height, inputs.height);
      batch->max_width = std::max(batch->max_width, inputs.width);
    }
  }

  static bool any(const Workspace &ws, int input, int64_t count) {
    if (ws.NumInput() <= input) return false;
    const auto &list = ws.Input<dali::CPUBackend>(input);
    for (int i = 0; i < list.num_samples(); ++i)
      if (list.tensor_shape(i).num_elements() == count) return true;
    return false;
  }

  void launch(const Workspace &ws, const FastichCudaBatch &batch, const Tables &device, void *out,
              dali::kernels::DynamicScratchpad *scratchpad) const {
    const size_t bytes = fastich_cuda_scratch_bytes(&batch), status_bytes = batch.num * sizeof(int32_t);
    DALI_ENFORCE(bytes > 0, "a batch of " + std::to_string(batch.num) + " slices of up to " + std::to_string(batch.max_height) +
                                " x " + std::to_string(batch.max_width) + " is more than the kernels take");
    void *scratch = scratchpad->AllocateGPU<char>(bytes, 256);
    int32_t *status = scratchpad->AllocateGPU<int32_t>(batch.num), *found = scratchpad->AllocatePinned<int32_t>(batch.num);
    const int32_t refused = fastich_cuda_decode_window(
        &batch, any(ws, 2, 6) ? device.matrix : nullptr, any(ws, 3, 2) ? device.intensity : nullptr, &arguments_.windowing,
        out, status, scratch, bytes, ws.stream());
    DALI_ENFORCE(refused == FASTICH_OK, std::string("CUDA kernels: ") + fastich_cuda_text(refused));
    CUDA_CALL(cudaMemcpyAsync(found, status, status_bytes, cudaMemcpyDeviceToHost, ws.stream()));
    CUDA_CALL(cudaStreamSynchronize(ws.stream()));
    for (int i = 0; i < batch.num; ++i) check_sample(i, found[i]);
  }

  Arguments arguments_;
};

DALI_REGISTER_OPERATOR(fastich__DecodeWindow, DecodeWindowGpu, dali::GPU);

}  // namespace fastich
