"""Which weights a checkpoint has, and how weights are written on a command line."""

from __future__ import annotations

from pathlib import Path

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.layout import check_weight
from nvfp4_tvm.schedules.base import MRange

Shape = tuple[int, int]


def parse_shapes(text: str) -> list[Shape]:
    """Read ``NxK,NxK``.

    Raises
    ------
    NVFP4Error
        If something else is written, or no kernel has such a shape.
    """
    shapes: list[Shape] = []
    for word in text.split(","):
        N, _, K = word.strip().partition("x")
        if not (N.isdigit() and K.isdigit()):
            raise NVFP4Error(f"shape {word!r}: expected NxK such as 4096x14336")
        check_weight(int(N), int(K), f"shape {word.strip()}")
        shapes.append((int(N), int(K)))
    return list(dict.fromkeys(shapes))


def parse_ranges(text: str) -> tuple[MRange, ...]:
    """Read ``1-8,9-16,17-``: ranges of M in order and without overlap, the last one possibly without an end.

    Raises
    ------
    NVFP4Error
        If something else is written.
    """
    ranges: list[MRange] = []
    for word in text.split(","):
        low, dash, high = word.strip().partition("-")
        if not low.isdigit() or (high and not high.isdigit()):
            raise NVFP4Error(f"range of M {word!r}: expected such as 1-8, 16 or 17-")
        ranges.append(MRange(int(low), int(high) if high else None if dash else int(low)))
        if len(ranges) > 1 and (ranges[-2].high is None or ranges[-2].high >= ranges[-1].low):
            raise NVFP4Error(f"ranges of M {text!r}: expected them in order and without overlap")
    return tuple(ranges)


def shapes_of_checkpoint(path: Path) -> list[Shape]:
    """Return the quantized weights of a checkpoint as they are compiled, fused where they are, each once.

    Raises
    ------
    NVFP4Error
        If it is not a checkpoint that compiles, or has no quantized layers.
    """
    from nvfp4_tvm.checkpoint import open_checkpoint
    from nvfp4_tvm.models.config import DecoderConfig
    from nvfp4_tvm.models.parameters import quantized_modules
    from nvfp4_tvm.models.structure import embedding_spec, head_spec, layer_spec

    checkpoint = open_checkpoint(path)
    config = DecoderConfig.from_hf(checkpoint.config)
    quantized = quantized_modules(checkpoint)
    layers = (layer_spec(config, index, quantized) for index in range(config.num_hidden_layers))
    linears = [linear for layer in layers for linear in layer.linears]
    linears += [spec for spec in (embedding_spec(config, quantized), head_spec(config, quantized)) if spec]
    shapes = list(dict.fromkeys((linear.N, linear.K) for linear in linears if linear.quantized))
    if not shapes:
        raise NVFP4Error(f"{path}: has no NVFP4 layers to tune; quantize it first")
    return shapes
