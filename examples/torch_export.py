"""A PyTorch transformer with NVFP4 linear layers: quantized, exported, compiled for the CPU, compared.

Run it with ``python examples/torch_export.py``; it needs ``pip install nvfp4-tvm[torch]`` and takes half a
minute.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nvfp4_tvm.torch import compile_exported, replace_linears

WIDTH, HEADS, LAYERS, VOCABULARY = 256, 4, 2, 1000


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a normalisation and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, length, width] to the same."""
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position."""
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = Transformer().eval()
    tokens = torch.randint(VOCABULARY, (3, 16))
    plain = model(tokens)

    replaced = replace_linears(model)
    quantized = model(tokens)
    print(f"quantized {len(replaced)} layers; cosine with the float model: {cosine(plain, quantized):.4f}")

    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (tokens,), dynamic_shapes=({0: batch},))
    compiled = compile_exported(program, target="llvm")
    for size in (1, 3, 8):
        tokens = torch.randint(VOCABULARY, (size, 16))
        expected, got = model(tokens), compiled(tokens)
        error = (got - expected).norm() / expected.norm()
        print(f"batch {size}: compiled against eager, relative error {error:.1e}")
        if not error < 1e-5:
            raise SystemExit("the compiled model disagrees with the eager one")


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


if __name__ == "__main__":
    main()
