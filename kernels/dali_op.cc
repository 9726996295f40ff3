// The DALI operator fastich.decode_window (CPU): a thin wrap over core.h. Where a slice is decoded, it runs on DALI's threads.

#include <string>
#include <vector>

#include "core.h"
#include "dali/pipeline/operator/operator.h"

namespace fastich {

using dali::OpSpec;
using dali::Workspace;

DALI_SCHEMA(fastich__DecodeWindow)
    .DocStr("Decodes LBP or raw uint16 slices of HU + 1024 and makes the network's input of them in one pass: affine warp, "
            "area mean, gain and offset in HU, windows, normalisation. Shapes and numbers: fastich/windowing.py.")
    .NumInput(2, 4)
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
  explicit DecodeWindow(const OpSpec &spec)
      : dali::Operator<dali::CPUBackend>(spec),
        centers_(spec.GetRepeatedArgument<float>("centers")),
        width_(spec.GetRepeatedArgument<float>("widths")),
        mean_(spec.GetRepeatedArgument<float>("mean")),
        std_(spec.GetRepeatedArgument<float>("std")),
        type_(spec.GetArgument<dali::DALIDataType>("dtype")) {
    const size_t count = centers_.size();
    DALI_ENFORCE(width_.size() == count && mean_.size() == count && std_.size() == count,
                 "centers, widths, mean and std must have the same length");
    for (size_t c = 0; c < count; ++c) low_.push_back(centers_[c] - width_[c] / 2);
    const std::string codec = spec.GetArgument<std::string>("codec"), layout = spec.GetArgument<std::string>("layout");
    DALI_ENFORCE(codec == "lbp" || codec == "raw", "codec must be lbp or raw, found " + codec);
    DALI_ENFORCE(layout == "CHW" || layout == "HWC", "layout must be CHW or HWC, found " + layout);
    DALI_ENFORCE(type_ == DALI_FLOAT || type_ == DALI_FLOAT16 || type_ == DALI_UINT16,
                 "dtype must be FLOAT, FLOAT16 or UINT16 (bfloat16 bits)");
    codec_ = codec == "lbp" ? FASTICH_LBP : FASTICH_RAW;
    chw_ = layout == "CHW";
    windowing_.size = spec.GetArgument<int>("size");
    windowing_.num_windows = static_cast<int32_t>(count);
    windowing_.low_hu = low_.data();
    windowing_.width_hu = width_.data();
    windowing_.mean = mean_.data();
    windowing_.std = std_.data();
    windowing_.dtype = type_ == DALI_FLOAT ? FASTICH_FLOAT32 : type_ == DALI_FLOAT16 ? FASTICH_FLOAT16 : FASTICH_BFLOAT16;
    windowing_.layout = chw_ ? FASTICH_CHW : FASTICH_HWC;
  }

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const Workspace &ws) override {
    const auto &payload = ws.Input<dali::CPUBackend>(0);
    const int64_t side = windowing_.size, count = windowing_.num_windows;
    const dali::TensorShape<> shape = chw_ ? dali::TensorShape<>{count, side, side} : dali::TensorShape<>{side, side, count};
    outputs.resize(1);
    outputs[0].type = type_;
    outputs[0].shape = dali::uniform_list_shape(payload.num_samples(), shape);
    return true;
  }

  void RunImpl(Workspace &ws) override {
    const auto &payload = ws.Input<dali::CPUBackend>(0);
    const auto &shape = ws.Input<dali::CPUBackend>(1);
    const bool warped = ws.NumInput() > 2, tuned = ws.NumInput() > 3;
    auto &output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout(chw_ ? "CHW" : "HWC");
    auto &threads = ws.GetThreadPool();
    for (int i = 0; i < payload.num_samples(); ++i) {
      const size_t size = payload.tensor_shape(i).num_elements();
      DALI_ENFORCE(shape.tensor_shape(i).num_elements() == 2, "shape must hold height and width");
      const int32_t *sides = shape.tensor<int32_t>(i);
      DALI_ENFORCE(sides[0] > 0 && sides[1] > 0, "height and width must be > 0");
      const float *matrix = nullptr, *intensity = nullptr;
      if (warped && ws.Input<dali::CPUBackend>(2).tensor_shape(i).num_elements() == 6)
        matrix = ws.Input<dali::CPUBackend>(2).tensor<float>(i);
      if (tuned && ws.Input<dali::CPUBackend>(3).tensor_shape(i).num_elements() == 2)
        intensity = ws.Input<dali::CPUBackend>(3).tensor<float>(i);
      const uint8_t *bytes = payload.tensor<uint8_t>(i);
      void *out = output.raw_mutable_tensor(i);
      threads.AddWork([this, i, bytes, size, sides, matrix, intensity, out](int) {
        const int32_t status = fastich_decode_window(
            bytes, size, codec_, static_cast<uint32_t>(sides[0]), static_cast<uint32_t>(sides[1]), matrix,
            intensity ? intensity[0] : 1.0f, intensity ? intensity[1] : 0.0f, &windowing_, out);
        DALI_ENFORCE(status == FASTICH_OK, "sample " + std::to_string(i) + (status == FASTICH_DAMAGED ? ": damaged payload" : ": bad argument"));
      }, static_cast<int64_t>(size));
    }
    threads.RunAll();
  }

 private:
  std::vector<float> centers_, low_, width_, mean_, std_;
  dali::DALIDataType type_;
  int32_t codec_ = FASTICH_LBP;
  bool chw_ = true;
  FastichWindowing windowing_{};
};

DALI_REGISTER_OPERATOR(fastich__DecodeWindow, DecodeWindow, dali::CPU);

}  // namespace fastich
