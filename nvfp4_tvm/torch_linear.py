"""Linear layers with NVFP4 weights as PyTorch modules, and what puts them into a model.

Use them from `nvfp4_tvm.torch`, which takes them to Relax too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from nvfp4_tvm import layout, numerics
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.torch_ops import decode, linear
from nvfp4_tvm.torch_packed import check_values, check_weight, describe

#: Name of a layer and the layer: whether to replace it.
Predicate = Callable[[str, nn.Linear], bool]


class Linear(nn.Module):
    """A linear layer with an NVFP4 weight, in place of ``torch.nn.Linear``.

    Made by `from_float` or `from_tensor`; the constructor makes a layer of zeros to load a state dict into.
    Casting the module (``.half()``, ``.to(dtype)``) casts the bias only: the weight keeps its format. It is
    for inference: nothing has a gradient.

    Parameters
    ----------
    in_features, out_features : int
        K, a multiple of 16, and N.
    bias : bool
        Whether there is a bias.
    scale_per_row : bool
        Whether `global_scale` is ``[N]``, as fused layers have it, and not ``[1]``.
    device : torch.device, optional
        Of the tensors.
    dtype : torch.dtype, optional
        Of the bias. Default: PyTorch's default dtype.

    Attributes
    ----------
    codes : torch.Tensor
        uint8 ``[N, K/2]``, even k in the low nibble.
    scales : torch.Tensor
        uint8 ``[N, K/16]``, E4M3 bytes.
    global_scale : torch.Tensor
        float32 ``[1]`` or ``[N]``; ``w = e2m1(code) * e4m3(scale) * global_scale``.
    bias : torch.nn.Parameter or None
        ``[N]``.

    Raises
    ------
    ShapeError
        If K is not a multiple of 16; from `forward` and `load_state_dict` for tensors that do not fit.
    CheckpointError
        From `load_state_dict`: a block scale is NaN or negative, or a global scale not positive.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale_per_row: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        N, K = out_features, in_features
        layout.check_weight(N, K, "nvfp4_tvm.torch.Linear")
        self.in_features, self.out_features = K, N
        self.register_buffer("codes", torch.zeros((N, K // 2), dtype=torch.uint8, device=device))
        self.register_buffer(
            "scales", torch.zeros((N, K // layout.GROUP_SIZE), dtype=torch.uint8, device=device)
        )
        self.register_buffer(
            "global_scale", torch.ones(N if scale_per_row else 1, dtype=torch.float32, device=device)
        )
        zeros = torch.zeros(N, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, method: numerics.Method = "amax", *, name: str = "weight"
    ) -> Linear:
        """Quantize a layer by `nvfp4_tvm.numerics.quantize`; its errors name the layer `name`."""
        weight = linear.weight.detach().float().cpu().numpy()
        codes, scales, global_scale = numerics.quantize(weight, method=method, name=name)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls.from_tensor(NVFP4Tensor(name, codes, scales, global_scale), bias).to(linear.weight.device)

    @classmethod
    def from_tensor(cls, tensor: NVFP4Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Make a layer of a checkpoint's tensor; `bias` is ``[N]`` in the dtype of the activations."""
        N, K = tensor.shape
        if bias is not None and (tuple(bias.shape) != (N,) or not bias.is_floating_point()):
            raise ShapeError(f"{tensor.name}: bias is {describe(bias)}, expected floating point [{N}]")
        made = cls(K, N, bias=False)
        made.codes.copy_(torch.tensor(tensor.codes))
        made.scales.copy_(torch.tensor(tensor.scales))
        made.global_scale.fill_(float(tensor.global_scale))
        made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x [..., K]`` times the transposed weight plus the bias: ``[..., N]``, dtype of `x`."""
        return linear(x, self.codes, self.scales, self.global_scale, self.bias)

    def dequantize(self) -> torch.Tensor:
        """Return the weight, float32 ``[N, K]``: the exact products with one rounding."""
        return decode(self.codes, self.scales) * self.global_scale[:, None]

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn.Linear`` does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Linear:
        before = self.global_scale
        super()._apply(fn, recurse)
        # A cast of the model must not round the global scale, nor let a 16-bit dtype flush it to zero.
        if self.global_scale.dtype != torch.float32:
            self.global_scale = before.to(self.global_scale.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # PyTorch would cast: E4M3 numbers to bytes by value, floating-point weights to codes.
        weight = [
            state_dict.get(prefix + name, getattr(self, name)) for name in ("codes", "scales", "global_scale")
        ]
        where = prefix.removesuffix(".") or "state dict"
        shape = check_weight(where, *weight)
        if shape != (self.out_features, self.in_features) or weight[2].shape != self.global_scale.shape:
            raise ShapeError(
                f"{where}: found a weight {list(shape)} with {weight[2].numel()} global scales, expected "
                f"[{self.out_features}, {self.in_features}] with {self.global_scale.numel()}"
            )
        check_values(where, *weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def replace_linears(
    model: nn.Module,
    select: Predicate | Collection[str] | None = None,
    *,
    method: numerics.Method = "amax",
) -> list[str]:
    """Quantize linear layers of a model in place.

    Parameters
    ----------
    model : torch.nn.Module
        Its ``torch.nn.Linear`` layers are replaced, subclasses are not. A layer that is used in several
        places stays one layer: any of its names selects it. A weight tied to an embedding becomes the layer's
        own.
    select : callable or collection of str, optional
        ``select(name, layer)`` tells whether to replace a layer; or the names. Default: all.
    method : {"amax", "four_over_six"}
        See `nvfp4_tvm.numerics.quantize`.

    Returns
    -------
    list of str
        Names of the replaced layers, all of those that a layer has.

    Raises
    ------
    NVFP4Error
        If a name is no linear layer of the model, or a weight cannot be quantized: K is not a multiple of
        16, or it holds NaN. The model is then unchanged.
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear
    }
    if "" in found:
        raise NVFP4Error("replace_linears: the model is itself a linear layer; use Linear.from_float")
    if isinstance(select, str):
        select = (select,)
    if select is not None and not callable(select):
        unknown = sorted(set(select) - set(found))
        if unknown:
            raise NVFP4Error(
                f"replace_linears: {unknown[0]!r} is not a torch.nn.Linear of the model, expected names such "
                f"as {', '.join(map(repr, list(found)[:3])) or 'none: the model has no linear layers'}"
            )
    selected = {
        module
        for name, module in found.items()
        if select is None or (select(name, module) if callable(select) else name in select)
    }
    chosen = {name: module for name, module in found.items() if module in selected}
    # Quantize everything before touching the model: an error leaves it as it was.
    made: dict[nn.Linear, Linear] = {}
    for name, module in chosen.items():
        if module not in made:
            made[module] = Linear.from_float(module, method, name=name).train(module.training)
    for name, module in chosen.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, made[module])
    return list(chosen)
