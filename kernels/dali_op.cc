// The DALI operator fastich.decode_window: its schema, and the CPU half, a thin wrap over core.h on DALI's threads.

#include "dali_op.h"

namespace fastich {

using dali::OpSpec;
using dali::Workspace;

DALI_SCHEMA(fastich__DecodeWindow)
    .DocStr("Decodes LBP or raw uint16 slices of HU + 1024 and makes the network's input of them in one pass: affine warp, "
            "area mean, gain and offset in HU, windows, normalisation. Shapes and numbers: fastich/windowing.py. On the "
            "GPU the payload lies there and the other inputs stay on the CPU.")
    .NumInput(2, 4)
    .InputDevice(1, 4, dali::InputDevice::CPU)
    .InputDox(0, "payload", "1D TensorList of uint8", "The bytes of one slice.")
    .InputDox(1, "shape", "1D TensorList of int32", "Height and width of the slice.")
    .InputDox(2, "matrix", "2D TensorList of float", "2 x 3, output to input, pixels with centres at +0.5.")
    .InputDox(3, "intensity", "1D TensorList of float", "Gain (about 0 HU) and offset in HU.")
    .NumOutput(1)
    .AddArg("codec", "lbp or raw.", DALI_STRING)
    .AddArg("size", "Side of the output, pixels.", DALI_INT32)
    .AddArg("centers", "Window centres, HU.", DALI_FLOAT_VEC)
    .AddArg("widths", "Window widths, HU.", DALI_FLOAT_VEC)
    .AddArg("mean", "Mean of each channel.", DALI_FLOAT_VEC)
    .AddArg("std", "Standard deviation of each channel.", DALI_FLOAT_VEC)
    .AddOptionalTypeArg("dtype", "FLOAT, FLOAT16 or a bfloat16 carried as UINT16.", DALI_FLOAT)
    .AddOptionalArg("layout", "CHW or HWC.", std::string("CHW"));

class DecodeWindow : public dali::Operator<dali::CPUBackend> {
 public:
  explicit DecodeWindow(const OpSpec &spec) : dali::Operator<dali::CPUBackend>(spec), arguments_(spec) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const Workspace &ws) override {
    arguments_.describe(ws.Input<dali::CPUBackend>(0).num_samples(), &outputs);
    return true;
  }

  void RunImpl(Workspace &ws) override {
    const auto &payload = ws.Input<dali::CPUBackend>(0);
    auto &output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout(arguments_.chw ? "CHW" : "HWC");
    auto &threads = ws.GetThreadPool();
    for (int i = 0; i < payload.num_samples(); ++i) {
      const size_t size = payload.tensor_shape(i).num_elements();
      const SampleInputs inputs(ws, i);
      const uint8_t *bytes = payload.tensor<uint8_t>(i);
      void *out = output.raw_mutable_tensor(i);
      threads.AddWork([this, i, bytes, size, inputs, out](int) {
        const float *intensity = inputs.intensity;
        check_sample(i, fastich_decode_window(bytes, size, arguments_.codec, static_cast<uint32_t>(inputs.height),
                                              static_cast<uint32_t>(inputs.width), inputs.matrix,
                                              intensity ? intensity[0] : 1.0f, intensity ? intensity[1] : 0.0f,
                                              &arguments_.windowing, out));
      }, static_cast<int64_t>(size));
    }
    threads.RunAll();
  }

 private:
  Arguments arguments_;
};

DALI_REGISTER_OPERATOR(fastich__DecodeWindow, DecodeWindow, dali::CPU);

}  // namespace fastich
