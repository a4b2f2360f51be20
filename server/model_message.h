#ifndef FLASHSVD_SERVER_MODEL_MESSAGE_H_
#define FLASHSVD_SERVER_MODEL_MESSAGE_H_

#include "flashsvd/v1/encoder.pb.h"
#include "runtime/model.h"
#include "server/service_context.h"

namespace flashsvd {

// What GetModel says of a model; ListModels leaves the modules out.
void FillModelMessage(Model& model, const RequestLimits& limits, bool with_modules,
                      v1::Model* message);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_MODEL_MESSAGE_H_
