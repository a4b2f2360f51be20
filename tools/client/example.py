#!/usr/bin/env python3
"""Embeds two sentences from Python, without generated code: example.py [ADDRESS [MODEL]]

Needs grpcio, grpcio-tools and numpy (pip install grpcio grpcio-tools numpy).
"""
import os
import sys

import grpc
import numpy

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../proto"))
pb, rpc = grpc.protos_and_services("flashsvd/v1/encoder.proto")

address, model = (sys.argv[1:] + ["127.0.0.1:50051", ""][len(sys.argv) - 1:])[:2]
service = rpc.EncoderServiceStub(grpc.insecure_channel(address))
texts = pb.TextInputs(texts=["A cat sits on the mat.", "Interest rates rose again."])
reply = service.Embed(pb.EmbedRequest(model=model, text=texts), timeout=30)
vectors = numpy.frombuffer(reply.embeddings.data, "<f4").reshape(reply.embeddings.shape)
print(vectors.shape, "cosine", vectors[0] @ vectors[1], "tokens", reply.usage.tokens)
