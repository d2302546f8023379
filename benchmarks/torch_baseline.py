"""The repack in PyTorch operators, on any device: what `benchmarks/convert.py` compares the compiled kernel with.

The positions and the bits come from `nvfp4_tvm.layout`, whose functions take tensors as they take arrays.
"""

from __future__ import annotations

import torch

from nvfp4_tvm import layout


def pack(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words and block scales of a weight whose N and K are whole tiles, uint8 [N, K/2] and [N, K/16]."""
    N, K = codes.shape[0], 2 * codes.shape[1]
    n, k = layout.word_origin(*_axes(layout.words_shape(N, K), codes.device))
    # torch shifts its int32 arithmetically and its uint32 not at all
    canonical = codes.view(torch.int32)[n, k // layout.CODES_PER_WORD].long() & 0xFFFFFFFF
    words = layout.move_bits(canonical, layout.PACK_MOVES, int).to(torch.int32).view(torch.uint32)
    n, group = layout.scale_origin(*_axes((*layout.scales_shape(N, K), 4), codes.device))
    return words, scales[n, group].view(torch.uint32)[..., 0]


def _axes(shape: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """Return one index tensor an axis, which broadcast against each other to ``shape``."""
    return [
        torch.arange(extent, device=device).view([-1 if a == axis else 1 for a in range(len(shape))])
        for axis, extent in enumerate(shape)
    ]
