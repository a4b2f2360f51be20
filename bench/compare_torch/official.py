"""The kernels of FlashSVD's public repository, from a checkout that the user provides.

https://github.com/Zishan-Shao/FlashSVD (arXiv 2508.01506). Only two functions of it are called:
`flash_svd_attention` and `flashsvd_ffn_v1`, the ones that its encoder blocks call. What stands
between them is PyTorch, as there. Unlike those blocks, nothing is copied that need not be, the
allocator's cache is not emptied in every layer, and the attention's tile is the kernel's own
default (the blocks' smaller one launches twice the blocks needed).
"""

import importlib.util
import os

import torch
from torch import nn

from . import torch_models

# Where the encoder kernels have lain, newest first.
FOLDERS = ("src/legacy/FlashSVD-V1/src/kernels", "FlashSVD-V1/src/kernels", "src/kernels")


class Unsupported(Exception):
    pass


def load_function(checkout, file, name):
    for folder in FOLDERS:
        path = os.path.join(checkout, folder, file)
        if os.path.exists(path):
            spec = importlib.util.spec_from_file_location("official_" + name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return getattr(module, name)
    raise Unsupported(f"{file} is in none of {', '.join(FOLDERS)} of {checkout}")


def encoder(model, checkout):
    attention = load_function(checkout, "flashsvdattn.py", "flash_svd_attention")
    ffn = load_function(checkout, "flashsvdffnv1.py", "flashsvd_ffn_v1")
    kinds = {m["layout"] for n, m in model.modules.items() if ".self." in n}
    if kinds != {"per_head"}:
        raise Unsupported("its encoder kernels take factors per head only")
    return torch_models.Encoder(
        model, False, lambda m, index, _: OfficialLayer(m, index, attention, ffn))


class OfficialLayer(nn.Module):
    def __init__(self, model, index, attention, ffn):
        super().__init__()
        self.attention, self.ffn = attention, ffn
        prefix = f"encoder.layer.{index}."
        heads = model.config["num_attention_heads"]

        def up_to_down(name):  # [.., r, in], [.., out, r] -> [.., in, r], [.., r, out]
            return [torch_models.parameter(t.swapaxes(-1, -2)) for t in model.factors(name)]

        def bias(name):
            return torch_models.parameter(model.tensor(name + ".bias"))

        for letter, name in zip("qkv", ("query", "key", "value")):
            module = f"{prefix}attention.self.{name}"
            p, v = up_to_down(module)
            setattr(self, "p" + letter, p)
            setattr(self, "v" + letter, v)
            b = bias(module).view(heads, -1)
            setattr(self, "b" + letter, nn.Parameter(b, requires_grad=False))
        self.out = torch_models.LowRankLinear(model, [prefix + "attention.output.dense"])
        self.u1, self.v1 = up_to_down(prefix + "intermediate.dense")
        self.u2, self.v2 = up_to_down(prefix + "output.dense")
        self.b1, self.b2 = bias(prefix + "intermediate.dense"), bias(prefix + "output.dense")
        self.attention_norm = torch_models.LayerNorm(model, prefix + "attention.output.LayerNorm")
        self.output_norm = torch_models.LayerNorm(model, prefix + "output.LayerNorm")

    def forward(self, x):
        batch, length, d = x.shape
        if length % 64:
            raise Unsupported("its attention reads past sequences of no multiple of 64 tokens")
        arguments = []
        for letter in "qkv":
            p, v, b = (getattr(self, part + letter) for part in "pvb")
            arguments += [torch.einsum("bmd,hdr->bhmr", x, p),
                          v.expand(batch, *v.shape), b.expand(batch, *b.shape)]
        mask = torch.ones(batch, 1, 1, length, dtype=torch.int32, device=x.device)
        attended = self.attention(*arguments, mask).transpose(1, 2).reshape(batch, length, d)
        x = self.attention_norm(x + self.out(attended))
        y = self.ffn(torch.matmul(x, self.u1), self.v1, self.u2, self.v2, self.b1, self.b2)
        return self.output_norm(x + y)
