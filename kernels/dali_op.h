// What the two halves of fastich.decode_window share: the arguments, checked once, and the shape of the output.
#ifndef FASTICH_DALI_OP_H_
#define FASTICH_DALI_OP_H_

#include <string>
#include <vector>

#include "core.h"
#include "dali/pipeline/operator/operator.h"

namespace fastich {

struct Arguments {
  std::vector<float> low, width, mean, std;
  dali::DALIDataType type;
  int32_t codec = FASTICH_LBP;
  bool chw = true;
  FastichWindowing windowing{};  // points into the vectors: an Arguments is never copied

  explicit Arguments(const dali::OpSpec &spec)
      : low(spec.GetRepeatedArgument<float>("centers")),
        width(spec.GetRepeatedArgument<float>("widths")),
        mean(spec.GetRepeatedArgument<float>("mean")),
        std(spec.GetRepeatedArgument<float>("std")),
        type(spec.GetArgument<dali::DALIDataType>("dtype")) {
    const size_t count = low.size();
    DALI_ENFORCE(width.size() == count && mean.size() == count && std.size() == count,
                 "centers, widths, mean and std must have the same length");
    for (size_t c = 0; c < count; ++c) low[c] -= width[c] / 2;
    const std::string codec_name = spec.GetArgument<std::string>("codec"), layout = spec.GetArgument<std::string>("layout");
    DALI_ENFORCE(codec_name == "lbp" || codec_name == "raw", "codec must be lbp or raw, found " + codec_name);
    DALI_ENFORCE(layout == "CHW" || layout == "HWC", "layout must be CHW or HWC, found " + layout);
    DALI_ENFORCE(type == DALI_FLOAT || type == DALI_FLOAT16 || type == DALI_UINT16,
                 "dtype must be FLOAT, FLOAT16 or UINT16 (bfloat16 bits)");
    codec = codec_name == "lbp" ? FASTICH_LBP : FASTICH_RAW;
    chw = layout == "CHW";
    const int32_t dtype = type == DALI_FLOAT     ? FASTICH_FLOAT32
                          : type == DALI_FLOAT16 ? FASTICH_FLOAT16
                                                       : FASTICH_BFLOAT16;
    windowing = FastichWindowing{spec.GetArgument<int>("size"), static_cast<int32_t>(count), low.data(), width.data(),
                                 mean.data(), std.data(), dtype, chw ? FASTICH_CHW : FASTICH_HWC};
  }
  Arguments(const Arguments &) = delete;

  void describe(int num_samples, std::vector<dali::OutputDesc> *outputs) const {
    const int64_t side = windowing.size, count = windowing.num_windows;
    const dali::TensorShape<> shape = chw ? dali::TensorShape<>{count, side, side} : dali::TensorShape<>{side, side, count};
    outputs->resize(1);
    outputs->at(0).type = type;
    outputs->at(0).shape = dali::uniform_list_shape(num_samples, shape);
  }
};

// One slice's small inputs, which lie in host memory for both halves.
struct SampleInputs {
  int32_t height, width;
  const float *matrix, *intensity;  // null where there is none

  SampleInputs(const dali::Workspace &ws, int i) {
    const auto &shape = ws.Input<dali::CPUBackend>(1);
    DALI_ENFORCE(shape.tensor_shape(i).num_elements() == 2, "shape must hold height and width");
    height = shape.tensor<int32_t>(i)[0];
    width = shape.tensor<int32_t>(i)[1];
    DALI_ENFORCE(height > 0 && width > 0, "height and width must be > 0");
    matrix = floats(ws, 2, i, 6);
    intensity = floats(ws, 3, i, 2);
  }

 private:
  static const float *floats(const dali::Workspace &ws, int input, int i, int64_t count) {
    if (ws.NumInput() <= input || ws.Input<dali::CPUBackend>(input).tensor_shape(i).num_elements() != count) return nullptr;
    return ws.Input<dali::CPUBackend>(input).tensor<float>(i);
  }
};

// Throws where a slice was refused.
inline void check_sample(int i, int32_t status) {
  DALI_ENFORCE(status == FASTICH_OK,
               "sample " + std::to_string(i) + (status == FASTICH_DAMAGED ? ": damaged payload" : ": bad argument"));
}

}  // namespace fastich

#endif  // FASTICH_DALI_OP_H_
