"""Weights of common models, whole and as tensor parallelism cuts them: what the shipped records are tuned for.

    python -m benchmarks.model_shapes [--untuned sm_90] [--part 1/2]

prints them as ``nvfp4-tvm tune --shapes`` takes them: all, or those without measured records among the shipped
ones; of these every second, say, for one of two GPUs.

Dimensions are those of the models' ``config.json``. Gemma 4 12B and 31B have the MLPs of Gemma 3 12B and 27B.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from nvfp4_tvm.schedules.records import MEASURED
from nvfp4_tvm.schedules.tuned import shipped


@dataclass(frozen=True)
class Model:
    """A decoder: widths in elements."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int = 128

    def shapes(self, parallel: int = 1) -> list[tuple[int, int]]:
        """Return (N, K) of the layers of one of ``parallel`` devices, fused; whole models have separate ones too.

        Fused qkv and gate_up are cut along N, o and down along K.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        qkv = (q + 2 * max(kv // parallel, self.head_dim) * parallel) // parallel
        fused = [
            (qkv, self.hidden),
            (self.hidden, q // parallel),
            (2 * self.inner // parallel, self.hidden),
            (self.hidden, self.inner // parallel),
        ]
        apart = [(q, self.hidden), (kv, self.hidden), (self.inner, self.hidden)]
        return fused + (apart if parallel == 1 else [])


MODELS: dict[str, Model] = {
    "Llama 3 8B": Model(4096, 14336, 32, 8),
    "Llama 3 70B": Model(8192, 28672, 64, 8),
    "Qwen3 8B": Model(4096, 12288, 32, 8),
    "Qwen3 14B": Model(5120, 17408, 40, 8),
    "Qwen3 32B": Model(5120, 25600, 64, 8),
    "Gemma 3 12B": Model(3840, 15360, 16, 8, 256),
    "Gemma 3 27B": Model(5376, 21504, 32, 16),
    "Mistral Small 24B": Model(5120, 32768, 32, 8),
}
PARALLEL = (1, 2, 4, 8)


def model_shapes(parallel: tuple[int, ...] = PARALLEL) -> list[tuple[int, int]]:
    """Return every weight once: whole models first, so that a run that is stopped has what most users have."""
    shapes = [shape for devices in parallel for model in MODELS.values() for shape in model.shapes(devices)]
    return list(dict.fromkeys(shapes))


def untuned(arch: str) -> list[tuple[int, int]]:
    """Return the shapes that the shipped records of an architecture have no measurement of."""
    measured = {(r.N, r.K) for r in shipped(arch).records if r.source == MEASURED}
    return [shape for shape in model_shapes() if shape not in measured]


def part(shapes: list[tuple[int, int]], which: str) -> list[tuple[int, int]]:
    """Return what one of several GPUs takes, in order; ``which`` is such as 1/2.

    Raises
    ------
    ValueError
        If there is no such part.
    """
    number, _, parts = which.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part {which}: expected such as 1/2, the first of two")
    return shapes[int(number) - 1 :: int(parts)]


def main() -> None:
    """Print the shapes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--untuned", metavar="ARCH")
    parser.add_argument("--part", default="1/1")
    arguments = parser.parse_args()
    shapes = untuned(arguments.untuned) if arguments.untuned else model_shapes()
    print(",".join(f"{N}x{K}" for N, K in part(shapes, arguments.part)))


if __name__ == "__main__":
    main()
