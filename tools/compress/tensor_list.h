#ifndef FLASHSVD_TOOLS_COMPRESS_TENSOR_LIST_H_
#define FLASHSVD_TOOLS_COMPRESS_TENSOR_LIST_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace flashsvd {

// The tensors of a model file to be. Matrices are written as `matrix_dtype`; vectors and scalars
// (biases, LayerNorms), which are small and sensitive, as f32.
class TensorList {
 public:
  explicit TensorList(DType matrix_dtype) : matrix_dtype_(matrix_dtype) {}

  void Add(std::string name, std::vector<int64_t> shape, std::vector<float> values);

  // Writes the tensors in the order of their names. InvalidArgument: a value is not finite or too
  // large for its dtype; names the tensor.
  absl::Status Write(const std::string& path,
                     const std::map<std::string, std::string>& metadata) const;

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };

  const DType matrix_dtype_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_TENSOR_LIST_H_
