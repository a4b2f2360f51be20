"""Writes golden.safetensors with the reference implementation of the format.

Needs: pip install safetensors numpy ml_dtypes. Run in this directory; the output is deterministic.
The C++ tests read it and, from the tensor "source", write a file with the same bytes.
"""

import ml_dtypes  # makes bfloat16 known to numpy
import numpy as np
from safetensors.numpy import save_file

# Exact values, ties both ways, the largest f16, subnormals, signed zeros.
source = np.array(
    [
        0.0, -0.0, 1.0, -1.5, 0.1, 3.14159274, 65504.0, -65504.0, 2049.0, 2051.0, 1.00048828125,
        1.0009765625, 1.00146484375, 6.103515625e-05, 6.0975552e-05, 5.9604645e-08, 2.9802322e-08,
        2.9802326e-08, 8.9406967e-08, 1e-10, -1e-40, 1.00390625, 1.01171875, -257.0, 259.0, 1000.25,
    ],
    dtype=np.float32,
)

save_file(
    {
        "source": source,
        "source.f16": source.astype(np.float16),
        "source.bf16": source.astype(ml_dtypes.bfloat16),
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((3, 0, 2), np.float32),
    },
    "golden.safetensors",
    metadata={"made_by": "tests/golden/safetensors/make.py"},
)

# What widening must give, kept apart so that no reader sees both.
save_file(
    {
        "source.f16": source.astype(np.float16).astype(np.float32),
        "source.bf16": source.astype(ml_dtypes.bfloat16).astype(np.float32),
        "position_ids": np.arange(4, dtype=np.int64).reshape(1, 4),
    },
    "widened.safetensors",
)
