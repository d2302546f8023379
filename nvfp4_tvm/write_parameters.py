"""Streaming a checkpoint's parameters into a compiled folder, one fused layer in memory at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tvm
from tvm import relax

from nvfp4_tvm.buffers import Buffers
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.writer import SafetensorsWriter
from nvfp4_tvm.models.parameters import ParamSource, load_nvfp4, load_parameter
from nvfp4_tvm.output_folder import Work, output_key
from nvfp4_tvm.packing import pack
from nvfp4_tvm.passes.fold_weights import PACKED_FIELDS
from nvfp4_tvm.passes.transform_params import PackedOutput, PlainOutput, read_transform
from nvfp4_tvm.runtime.folder import PARAMS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which parameters to write, and from what.

    Attributes
    ----------
    canonical : tuple of ParamSource
        What ``transform_params`` takes, in order.
    outputs : tuple of PackedOutput or PlainOutput
        What it makes of them; see `read_transform`.
    specs : dict
        Parameters to write, in order: name to dtype and shape.
    """

    canonical: tuple[ParamSource, ...]
    outputs: tuple[PackedOutput | PlainOutput, ...]
    specs: dict[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def make(
        cls,
        canonical: Sequence[ParamSource],
        packed: Mapping[str, relax.TensorType],
        transform: tvm.IRModule | None,
    ) -> Plan:
        """Read the plan from a folded module.

        Parameters
        ----------
        canonical : sequence of ParamSource
            Parameters of the module before it was folded, in order.
        packed : mapping
            The parameters that its functions take since, in order.
        transform : tvm.IRModule or None
            Of `split_transform`.
        """
        plain = [PlainOutput(i) for i in range(len(canonical))]
        outputs = plain if transform is None else read_transform(transform)
        specs = {name: (str(ty.dtype), tuple(map(int, ty.shape))) for name, ty in packed.items()}
        return cls(tuple(canonical), tuple(outputs), specs)

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides over the bytes written, but for the checkpoint's."""
        orders = [
            [
                *_operands(output),
                None if isinstance(output, PlainOutput) or output.order is None else output.order.tolist(),
            ]
            for output in self.outputs
        ]
        return output_key(
            canonical=[repr(source) for source in self.canonical], orders=orders, specs=self.specs
        )


def write_parameters(
    checkpoint: Checkpoint, plan: Plan, work: Work, report: Callable[[int, int], None]
) -> dict[str, str]:
    """Write the parameters that a model's functions take.

    Parameters
    ----------
    checkpoint : Checkpoint
    plan : Plan
    work : Work
        Where to write; what an earlier process wrote stays.
    report : callable
        Told the bytes read so far and in all.

    Returns
    -------
    dict of str to str
        SHA-256 of each parameter as written, in hexadecimal.
    """
    specs = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in plan.specs.items()}
    steps = [[plan.canonical[i] for i in _operands(output)] for output in plan.outputs]
    tensors = [_tensors(checkpoint, sources) for sources in steps]
    total, done = sum(checkpoint.tensor_info(name).nbytes for names in tensors for name in names), 0
    buffers = Buffers()
    names = iter(specs)
    report(0, total)
    with SafetensorsWriter(work.path, PARAMS, specs, journal=work.journal) as writer:
        for step, (output, sources) in enumerate(zip(plan.outputs, steps, strict=True)):
            start = time.perf_counter()
            written = [
                next(names) for _ in range(len(PACKED_FIELDS) if isinstance(output, PackedOutput) else 1)
            ]
            size = sum(checkpoint.tensor_info(name).nbytes for name in tensors[step])
            missing = [name for name in written if not writer.resumed(name)]
            if not missing:
                logger.info("%s: written before, %d bytes", written[0], size)
            else:
                for name in tensors[step + 1] if step + 1 < len(steps) else ():
                    checkpoint.prefetch(name)
                arrays = _arrays(checkpoint, output, sources, buffers)
                for name, array in zip(written, arrays, strict=True):
                    if name in missing:
                        writer.write(name, array)
                seconds = time.perf_counter() - start
                logger.info(
                    "%s: %d bytes in %.3f s, %.3g GB/s", written[0], size, seconds, size / seconds / 1e9
                )
            for name in tensors[step]:
                checkpoint.release(name)
            done += size
            report(done, total)
    return writer.digests


def _operands(output: PackedOutput | PlainOutput) -> tuple[int, ...]:
    return output.operands if isinstance(output, PackedOutput) else (output.operand,)


def _arrays(
    checkpoint: Checkpoint, output: PackedOutput | PlainOutput, sources: list[ParamSource], buffers: Buffers
) -> list[np.ndarray]:
    if isinstance(output, PlainOutput):
        return [load_parameter(checkpoint, sources[0], buffers)]
    parts = load_nvfp4(checkpoint, sources[0])
    weight = pack(
        [part.codes for part in parts],
        [part.scales for part in parts],
        [part.global_scale for part in parts],
        order=output.order,
        buffers=buffers,
    )
    return [getattr(weight, field) for field in PACKED_FIELDS]


def _tensors(checkpoint: Checkpoint, sources: list[ParamSource]) -> list[str]:
    """Return the names of the checkpoint's tensors behind parameters that are written together."""
    names: dict[str, None] = {}
    for source in sources:
        for module, _ in source.modules:
            if source.field in ("weight", "bias"):
                names[f"{module}.{source.field}"] = None
            else:
                packed = (name for name in checkpoint.tensors_of(module) if not name.endswith(".bias"))
                names |= dict.fromkeys(packed)
    return list(names)
