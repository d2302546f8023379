"""Random parameters for a library of MLC-LLM, made on its device from a seed; every layer has its own.

Of NVFP4 layers, of those of q4f16_1 and of plain ones, the weight can be had once more as float32, for a
recomputation. Standard deviation is that of a trained Llama's layers, about 0.02, so that activations keep to the
range of 16-bit types.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import tvm

STD = 0.02
#: E4M3 bytes of 0.5 to 1.875.
SCALE_BYTES = (0x30, 0x40)
#: Root mean square of random E2M1 codes times random block scales of SCALE_BYTES.
_RMS = 2.926 * 1.177
#: q4f16_1 (mlc_llm/quantization/group_quantization.py): a weight is a number of -7 to 7 times its group's scale,
#: stored plus 7, eight to a word, the first in the lowest bits. 15 is not used; with it weights would have a mean.
_OFFSET_Q4, _IN_WORD, _GROUP_Q4 = 7, 8, 32
#: Of a random one.
_RMS_Q4 = 4.32
PACKED = ("words", "scales", "global_scale")


def _of_tvm(tensor: torch.Tensor) -> tvm.runtime.Tensor:
    """Return the same data as TVM's; a copy on the CPU, where torch aligns to less than the 64 bytes TVM wants."""
    if tensor.device.type != "cpu":
        return tvm.runtime.from_dlpack(tensor)
    own = tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    torch.from_dlpack(own).copy_(tensor)
    return own


class Weights:
    """Parameters of one library.

    Parameters
    ----------
    params : list of dict
        ``params`` of the library's metadata: name, shape and dtype of each, in the order of its functions.
    sizes : dict of str to int
        Values of symbolic extents, by name.
    device : str
        ``cuda`` or ``cpu``.
    """

    def __init__(self, params: list[dict[str, Any]], sizes: dict[str, int], device: str) -> None:
        self.device = torch.device(device)
        self.shapes = {
            param["name"]: tuple(sizes[s] if isinstance(s, str) else s for s in param["shape"])
            for param in params
        }
        self.dtypes = {param["name"]: param["dtype"] for param in params}

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))

    def _integers(
        self, name: str, low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        return torch.randint(
            low, high, shape, generator=self._generator(name), device=self.device, dtype=dtype
        )

    def canonical(self, layer: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return codes uint8 [N, K/2], block scales uint8 [N, K/16] and the global scale of an NVFP4 layer."""
        tiles_N, tiles_K = self.shapes[f"{layer}.words"][:2]
        N, K = 16 * tiles_N, 128 * tiles_K
        codes = self._integers(f"{layer}.words", 0, 256, (N, K // 2), torch.uint8)
        scales = self._integers(f"{layer}.scales", *SCALE_BYTES, (N, K // 16), torch.uint8)
        return codes, scales, STD / _RMS

    def _packed(self, layer: str) -> dict[str, torch.Tensor]:
        from nvfp4_tvm.torch_packed import pack

        packed = pack(*self.canonical(layer), name=layer)
        return {field: getattr(packed, field) for field in PACKED}

    def _q4(self, name: str) -> torch.Tensor:
        """Return the numbers that the words of q4f16_1 hold, int32 ``[..., words, 8]``."""
        return self._integers(name, 0, 2 * _OFFSET_Q4 + 1, (*self.shapes[name], _IN_WORD), torch.int32)

    def plain(self, name: str) -> torch.Tensor:
        """Return a parameter that is not packed."""
        shape, dtype = self.shapes[name], getattr(torch, self.dtypes[name])
        if dtype == torch.uint32:
            numbers = self._q4(name)
            words = numbers[..., 0].clone()
            for index in range(1, _IN_WORD):
                words |= numbers[..., index] << (4 * index)
            return words.view(torch.uint32)
        if name.endswith(".q_scale"):
            return torch.full(shape, STD / _RMS_Q4, dtype=dtype, device=self.device)
        values = torch.randn(shape, generator=self._generator(name), device=self.device, dtype=torch.float32)
        if len(shape) == 1:
            return (1 + 0.1 * values).to(dtype)  # a norm
        return values.mul_(STD).to(dtype)

    def tensors(self) -> list[tvm.runtime.Tensor]:
        """Return all parameters in order."""
        made: dict[str, torch.Tensor] = {}
        for name in self.shapes:
            layer, _, field = name.rpartition(".")
            if field in PACKED and f"{layer}.words" in self.shapes:
                if name not in made:
                    made.update({f"{layer}.{key}": tensor for key, tensor in self._packed(layer).items()})
            else:
                made[name] = self.plain(name)
            assert tuple(made[name].shape) == self.shapes[name], name
        return [_of_tvm(made[name]) for name in self.shapes]

    def float32(self, layer: str) -> torch.Tensor:
        """Return the weight [N, K] that a layer's parameters stand for.

        Raises
        ------
        KeyError
            For a layer that is neither NVFP4, q4f16_1 nor plain.
        """
        if f"{layer}.words" in self.shapes:
            from nvfp4_tvm.torch_ops import decode

            codes, scales, global_scale = self.canonical(layer)
            return decode(codes, scales).mul_(global_scale)
        if f"{layer}.q_weight" in self.shapes:
            numbers = self._q4(f"{layer}.q_weight").flatten(1) - _OFFSET_Q4
            scales = self.plain(f"{layer}.q_scale").float()
            return numbers * scales.repeat_interleave(_GROUP_Q4, 1)
        if f"{layer}.weight" not in self.shapes:
            raise KeyError(layer)
        return self.plain(f"{layer}.weight").float()
