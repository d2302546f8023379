"""Which layers share a global scale, and the largest magnitude that decides over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from nvfp4_tvm.scaling import amax

#: Last parts of names of layers that serving engines fuse and give one global scale; w1 and w3 are Mixtral's.
FUSED_PARTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def fused_groups(chosen: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map each module that is part of a fused layer to all parts of it that are quantized."""
    chosen, groups = set(chosen), {}
    for module in chosen:
        parent, _, last = module.rpartition(".")
        for parts in FUSED_PARTS:
            if last in parts:
                groups[module] = tuple(m for p in parts if (m := f"{parent}.{p}") in chosen)
    return groups


class SharedAmax:
    """Returns the largest magnitude of a module's weight and of those it shares a global scale with.

    Each weight is looked at once.

    Parameters
    ----------
    tensors : mapping of str to str
        The tensor of each module that is quantized, which errors name.
    read : callable
        Returns a tensor by name, any number of rows of K.
    release : callable, optional
        Called with the name of a tensor that was looked at for another module's sake.
    share : bool
        Whether fused parts do share a scale; if not, each module has its own.
    """

    def __init__(
        self,
        tensors: Mapping[str, str],
        read: Callable[[str], np.ndarray],
        release: Callable[[str], object] | None = None,
        *,
        share: bool = True,
    ) -> None:
        self._tensors, self._read, self._release = tensors, read, release
        self._groups = fused_groups(tensors) if share else {}
        self._largest: dict[str, np.float32] = {}

    def __call__(self, module: str) -> np.float32:
        """Return the largest magnitude.

        Raises
        ------
        NVFP4Error
            If a weight has none that a scale can be made of; the message names the tensor.
        """
        for part in self._groups.get(module, (module,)):
            if part not in self._largest:
                name = self._tensors[part]
                weight = self._read(name)
                self._largest[part] = amax(weight.reshape(-1, weight.shape[-1]), name=name)
                if part != module and self._release is not None:
                    self._release(name)
        return max(self._largest[part] for part in self._groups.get(module, (module,)))
