#ifndef FLASHSVD_RUNTIME_ENCODER_LAYER_H_
#define FLASHSVD_RUNTIME_ENCODER_LAYER_H_

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "runtime/encoder.h"

namespace flashsvd {

// LayerNorm parameters that own their device memory.
struct OwnedLayerNorm {
  Buffer gamma;
  Buffer beta;
  float epsilon = 0;

  LayerNormParams params() const {
    return {static_cast<const float*>(gamma.data()), static_cast<const float*>(beta.data()),
            epsilon};
  }
};

// One encoder layer, folded (runtime/attention_fold.h) and packed. d_qk and d_v may differ from
// layer to layer: ranks do.
struct Encoder::Layer {
  struct Projection {
    std::unique_ptr<Linear> linear;
    int column = 0;  // first column of qkv that it fills
  };
  std::vector<Projection> projections;
  int d_qk = 0;
  int d_v = 0;
  std::unique_ptr<Linear> output;
  OwnedLayerNorm attention_norm;

  std::unique_ptr<Linear> up;
  std::unique_ptr<Linear> down;
  OwnedLayerNorm ffn_norm;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ENCODER_LAYER_H_
