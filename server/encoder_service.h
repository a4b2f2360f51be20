#ifndef FLASHSVD_SERVER_ENCODER_SERVICE_H_
#define FLASHSVD_SERVER_ENCODER_SERVICE_H_

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "server/embed_stream.h"
#include "server/service_context.h"

namespace flashsvd {

inline constexpr char kEncoderServiceName[] = "flashsvd.v1.EncoderService";

// All methods take raw bytes; raw_message.h says why.
using RawEncoderService = v1::EncoderService::WithRawCallbackMethod_Embed<
    v1::EncoderService::WithRawCallbackMethod_EmbedStream<
        v1::EncoderService::WithRawCallbackMethod_Tokenize<
            v1::EncoderService::WithRawCallbackMethod_ListModels<
                v1::EncoderService::WithRawCallbackMethod_GetModel<v1::EncoderService::Service>>>>>;

// flashsvd.v1.EncoderService on gRPC's callback API. Small requests are handled on gRPC's event
// threads, large ones on the workers; nothing waits for the engine. Thread-safe.
class EncoderService : public RawEncoderService {
 public:
  explicit EncoderService(const ServiceContext& context) : context_(context) {}

  // Ends all streams once what they have read is answered, and those that are opened later.
  void DrainStreams() { streams_.Drain(); }

  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* call,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* EmbedStream(
      grpc::CallbackServerContext* call) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* call,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* call,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* call,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  const ServiceContext context_;
  OpenStreams streams_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_ENCODER_SERVICE_H_
