"""An open checkpoint: its modules, its tensors, and the checks before any of them is used."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4_tvm.checkpoint.base import KV_SCALES, PLAIN_FORMATS, Format, LayerInfo, NVFP4Tensor, Scheme
from nvfp4_tvm.checkpoint.storage import SafetensorsFile, TensorInfo
from nvfp4_tvm.errors import CheckpointError, ShapeError, UnsupportedFormatError
from nvfp4_tvm.numerics import GROUP_SIZE

_log = logging.getLogger(__name__)


class Checkpoint:
    """An open checkpoint folder. Headers are read at once, tensors when asked for, one at a time.

    Use `open_checkpoint`.

    Attributes
    ----------
    path : Path
    config : dict
        config.json.
    """

    def __init__(self, path: Path, config: dict[str, Any], form: Format, owner: dict[str, SafetensorsFile]):
        self.path, self.config, self._format, self._owner = path, config, form, owner
        if any(name.rpartition(".")[2] in KV_SCALES for name in owner):
            _log.warning("%s: its KV-cache scales are ignored: the cache is kept in 16 bits", path)

    @property
    def format(self) -> str:
        """The format's name: "modelopt", "compressed-tensors", "none" (unquantized), ..."""
        return self._format.name

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._owner)

    def tensor_info(self, name: str) -> TensorInfo:
        """Return a tensor's dtype, shape and place.

        Raises
        ------
        CheckpointError
            If there is no such tensor.
        """
        if name not in self._owner:
            raise CheckpointError(f"{self.path}: has no tensor {name}")
        return self._owner[name].tensors[name]

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor as stored: a read-only view of the mapped file where its alignment allows.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or its dtype has no NumPy counterpart.
        """
        self.tensor_info(name)
        return self._owner[name].array(name)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from memory, to stream through a checkpoint; arrays of it stay valid."""
        self.tensor_info(name)
        self._owner[name].release(name)

    def prefetch(self, name: str) -> None:
        """Let the system read a tensor from the disk in the background."""
        self.tensor_info(name)
        self._owner[name].prefetch(name)

    def tensors_of(self, module: str) -> list[str]:
        """Return the names of a module's tensors.

        Raises
        ------
        CheckpointError
            If there is no such module.
        """
        return [f"{module}.{suffix}" for suffix in self._tensors_of(module)]

    def files(self) -> list[Path]:
        """Return the files that the tensors lie in, sorted."""
        return sorted({file.path for file in self._owner.values()})

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of change of the files: differs if the checkpoint was changed."""
        files = [*self.files(), *self.path.glob("*.json")]
        stats = {file.name: file.stat() for file in files}
        return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())

    @cached_property
    def _modules(self) -> dict[str, dict[str, TensorInfo]]:
        modules: dict[str, dict[str, TensorInfo]] = {}
        for name in self.names():
            module, _, suffix = name.rpartition(".")
            modules.setdefault(module, {})[suffix] = self.tensor_info(name)
        form = self._format
        bearing = {"weight", "weight_packed", "weight_scale", form.codes, form.scales, *form.refused}
        if form.name != "none":
            bearing.add(form.global_scale)
        return {m: tensors for m, tensors in modules.items() if bearing & set(tensors)}

    def module_names(self) -> list[str]:
        """Return the names of all weight-bearing modules, sorted."""
        return list(self._modules)

    def is_quantized(self, module: str) -> bool:
        """Return whether `module` holds an NVFP4 weight (which may still be refused when read)."""
        return self._kind(module) == "nvfp4"

    def nvfp4(self, module: str) -> NVFP4Tensor:
        """Return a module's NVFP4 weight, checked.

        Raises
        ------
        CheckpointError
            If the module is not NVFP4, or its tensors are not what they should be.
        """
        if not self.is_quantized(module):
            raise CheckpointError(f"{self.path}: module {module} is {self._kind(module)}, expected nvfp4")
        self._check_structure(module)
        form = self._format
        stored = np.float32(self.tensor(f"{module}.{form.global_scale}").reshape(())[()])
        with np.errstate(divide="ignore", over="ignore"):
            multiplier = form.multiplier(stored)
        name = f"{module}.{form.global_scale}"
        if not (np.isfinite(stored) and stored > 0 and np.isfinite(multiplier) and multiplier > 0):
            raise CheckpointError(
                f"{self.tensor_info(name).file}: tensor {name}: found {stored}, expected a positive finite "
                "number: the checkpoint is corrupt"
            )
        scales = self.tensor(f"{module}.{form.scales}").view(np.uint8)
        codes = self.tensor(f"{module}.{form.codes}")
        try:
            return NVFP4Tensor(module, codes, scales, multiplier)
        except CheckpointError as e:
            raise CheckpointError(f"{self.tensor_info(f'{module}.{form.scales}').file}: {e}") from None

    def layers(self, *, read_data: bool = True) -> dict[str, LayerInfo]:
        """Describe every weight-bearing module; what is wrong with one is its `LayerInfo.refusal`.

        Parameters
        ----------
        read_data : bool
            Also read the scales of quantized modules, a ninth of their bytes.
        """
        return {module: self._layer(module, read_data) for module in self._modules}

    def verify(self) -> None:
        """Check everything that loading all modules would check.

        Raises
        ------
        CheckpointError
            The first problem.
        """
        for module in self._modules:
            self._check_module(module, read_data=True)
            for name in self.tensors_of(module):
                self.release(name)

    # -- one module

    def _layer(self, module: str, read_data: bool) -> LayerInfo:
        tensors = self._modules[module]
        kind, refusal = "unknown", None
        try:
            kind = self._kind(module)
            self._check_module(module, read_data)
        except (CheckpointError, ShapeError) as e:
            refusal = str(e)
        weight = tensors.get(self._format.codes) or tensors.get("weight") or next(iter(tensors.values()))
        shape = weight.shape
        if kind == "nvfp4" and len(shape) == 2 and weight.dtype == "U8":
            shape = (shape[0], shape[1] * 2)
        if kind == "plain":
            kind = PLAIN_FORMATS.get(weight.dtype, weight.dtype.lower())
        nbytes = sum(t.nbytes for t in tensors.values())
        for name in self.tensors_of(module):
            self.release(name)
        return LayerInfo(module, kind, shape, weight.dtype, nbytes, weight.file.name, refusal)

    def _kind(self, module: str) -> str:
        scheme = self._scheme(module)
        if scheme.kind == "nvfp4" or not scheme.certain:
            return "nvfp4" if self._looks_packed(module) else "plain"
        return scheme.kind

    def _scheme(self, module: str) -> Scheme:
        tensors = self._tensors_of(module)
        weight = tensors.get("weight")
        if weight is not None and len(weight.shape) != 2 and not self._looks_packed(module):
            return Scheme("plain")  # norms, convolutions: not linear layers
        return self._format.scheme(module)

    def _tensors_of(self, module: str) -> dict[str, TensorInfo]:
        if module not in self._modules:
            raise CheckpointError(f"{self.path}: has no module {module} with a weight")
        return self._modules[module]

    def _looks_packed(self, module: str) -> bool:
        tensors, form = self._tensors_of(module), self._format
        codes = tensors.get(form.codes)
        if form.name == "none":
            return False
        if codes is not None and form.codes != "weight":
            return True
        if codes is not None and codes.dtype not in PLAIN_FORMATS:
            return len(codes.shape) == 2 or bool({form.scales, form.global_scale} & set(tensors))
        return codes is None and "weight" not in tensors

    def _check_module(self, module: str, read_data: bool) -> None:
        scheme, tensors = self._scheme(module), self._tensors_of(module)
        first = next(iter(tensors.values()))
        if scheme.kind == "nvfp4" and scheme.certain and not self._looks_packed(module):
            plain = tensors.get("weight", first)
            raise CheckpointError(
                f"{plain.file}: module {module}: found an unquantized weight ({plain}), expected NVFP4 as "
                f"the config says: add {module} to the config's ignore list if it is meant to be "
                "unquantized"
            )
        kind = self._kind(module)
        if kind == "nvfp4":
            self._check_structure(module)
            if read_data:
                self.nvfp4(module)
        elif kind != "plain":
            raise UnsupportedFormatError(
                f"{first.file}: module {module} is {kind} by the config, expected NVFP4 or unquantized "
                "weights: quantize the original checkpoint with `nvfp4-tvm quantize`"
            )
        else:
            self._check_plain(module)

    def _check_plain(self, module: str) -> None:
        form, tensors = self._format, self._tensors_of(module)
        for suffix, info in tensors.items():
            packed = suffix == "weight" and info.dtype not in PLAIN_FORMATS
            quantized = suffix in ("weight_packed", "weight_scale", "weight_scale_2", "weight_global_scale")
            if packed or quantized or suffix in form.refused:
                raise CheckpointError(
                    f"{info.file}: tensor {module}.{suffix}: found {info}, expected an unquantized weight, "
                    f"as the config lists {module or 'this module'} among those or has no quantization for "
                    "it: config and weights disagree"
                )

    def _check_structure(self, module: str) -> None:
        form, tensors = self._format, self._tensors_of(module)
        any_file = next(iter(tensors.values())).file

        def wrong(suffix: str, found: object, expected: str) -> CheckpointError:
            file = tensors[suffix].file if suffix in tensors else any_file
            return CheckpointError(f"{file}: tensor {module}.{suffix}: found {found}, expected {expected}")

        for suffix, meaning in form.refused.items():
            if suffix in tensors:
                raise UnsupportedFormatError(
                    f"{tensors[suffix].file}: tensor {module}.{suffix}: found {meaning}, which this "
                    "package does not run: quantize the original checkpoint with `nvfp4-tvm quantize`"
                )
        for suffix in (form.codes, form.scales, form.global_scale):
            if suffix not in tensors:
                raise wrong(
                    suffix, "no such tensor", "it beside the module's others: the checkpoint is incomplete"
                )
        known = {form.codes, form.scales, form.global_scale, "bias", *form.ignored, *KV_SCALES}
        for suffix, info in tensors.items():
            if suffix not in known:
                raise wrong(suffix, f"an extra tensor ({info})", f"only {', '.join(sorted(known))}")

        codes, scales, total = tensors[form.codes], tensors[form.scales], tensors[form.global_scale]
        if codes.dtype != "U8" or len(codes.shape) != 2 or 0 in codes.shape:
            raise wrong(form.codes, codes, "U8 [N, K/2], two E2M1 codes a byte")
        N, K = codes.shape[0], codes.shape[1] * 2
        if K % GROUP_SIZE:
            raise wrong(
                form.codes, codes, f"K = {K} to be a multiple of {GROUP_SIZE}: pad or exclude this layer"
            )
        self._check_scales(module, scales, N, K)
        if total.dtype != "F32" or total.shape not in ((), (1,)):
            raise wrong(form.global_scale, total, "one F32 number, shape [] or [1]")
        if "_quantization_metadata" in self._owner[codes.name].metadata:
            raise UnsupportedFormatError(
                f"{codes.file}: found _quantization_metadata in the header, expected a Hugging Face "
                "export: this file is made for a single-file runtime, and its block scales may be "
                "swizzled; export it again"
            )

    def _check_scales(self, module: str, scales: TensorInfo, N: int, K: int) -> None:
        where = f"{scales.file}: tensor {scales.name}: found {scales}"
        groups = K // GROUP_SIZE
        expected = f"expected F8_E4M3 [{N}, {groups}]"
        if scales.dtype == "F8_E4M3" and scales.shape == (N, groups):
            return
        if scales.dtype == "F8_E8M0" or (scales.dtype == "U8" and scales.shape == (N, K // 32)):
            raise UnsupportedFormatError(
                f"{where}, {expected}: power-of-two scales are MXFP4, which this package does not run; "
                "quantize the original checkpoint with `nvfp4-tvm quantize`"
            )
        # cuBLAS and CUTLASS interleave scales in tiles of 128 rows by 4 groups and pad to whole tiles.
        rows, columns = -(-N // 128) * 128, -(-groups // 4) * 4
        count = int(np.prod(scales.shape, dtype=object)) if scales.shape else 1
        if (
            scales.dtype in ("F8_E4M3", "U8")
            and count in (rows * columns, N * groups)
            and scales.shape != (N, groups)
        ):
            raise UnsupportedFormatError(
                f"{where}, {expected}: scales padded or swizzled for one kind of kernel are not run; "
                "export the checkpoint with linear scales"
            )
        raise CheckpointError(f"{where}, {expected}: codes and scales do not belong together")
