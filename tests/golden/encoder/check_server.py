#!/usr/bin/env python3
"""Holds a running server against the numpy forward pass on the same factors.

    check_server.py ADDRESS MODEL_DIR...

Each directory must be served under its last component. Prints the relative error of the normalised
vectors against float64, and that of a plain unfused bfloat16 chain; fails above 1e-5 for float32
models and above twice the chain's error for bfloat16 ones. Needs grpcio, grpcio-tools and numpy.
"""

import json
import os
import sys

import grpc
import numpy as np

import numpy_encoder

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../proto"))
pb, rpc = grpc.protos_and_services("flashsvd/v1/encoder.proto")


def normalised(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    service = rpc.EncoderServiceStub(grpc.insecure_channel(sys.argv[1]))
    with open(os.path.join(HERE, "minilm.json")) as f:
        sequences = json.load(f)["sequences"]
    tokens = pb.TokenInputs(sequences=[pb.TokenIds(ids=s) for s in sequences])
    failed = False
    for directory in sys.argv[2:]:
        name = os.path.basename(os.path.normpath(directory))
        dtype = service.GetModel(pb.GetModelRequest(model=name)).dtype
        reply = service.Embed(pb.EmbedRequest(model=name, tokens=tokens, normalize=True), timeout=60)
        got = np.frombuffer(reply.embeddings.data, "<f4").reshape(reply.embeddings.shape)
        want = normalised(numpy_encoder.forward(directory, sequences))
        chain = normalised(numpy_encoder.forward(directory, sequences, numpy_encoder.bfloat16))
        error, chain_error = relative_error(got, want), relative_error(chain, want)
        bound = 1e-5 if dtype == "f32" else 2 * chain_error
        failed |= not error <= bound
        print(
            f"{name} {dtype}: relative error {error:.2e}, at most {bound:.2e} allowed; "
            f"bf16 chain {chain_error:.2e}; least cosine {(got * want).sum(1).min():.7f}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
