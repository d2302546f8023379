"""Keeping float32 parameters as they are when ``convert_weight`` writes them.

MLC-LLM writes every float32 parameter as bfloat16, which is right for models computed in float32 and would round
the global scales of NVFP4 weights.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import Any

from nvfp4_tvm.mlc.quantization import KIND
from nvfp4_tvm.mlc.rebind import rebind


class _RawDump:
    """``tvm.contrib.tvmjs`` with a ``dump_tensor_cache`` that encodes nothing."""

    def __init__(self, tvmjs: Any):
        self._tvmjs = tvmjs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tvmjs, name)

    def dump_tensor_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Write parameters as `tvmjs.dump_tensor_cache` does, without rounding any."""
        return self._tvmjs.dump_tensor_cache(*args, **{**kwargs, "encode_format": "raw"})


@contextmanager
def _raw(module: Any) -> Any:
    tvmjs = module.tvmjs
    module.tvmjs = _RawDump(tvmjs)
    try:
        yield
    finally:
        module.tvmjs = tvmjs


def keep_float32(module: Any) -> None:
    """Let ``mlc_llm.interface.convert_weight.convert_weight`` write NVFP4 models without rounding."""
    convert_weight = module.convert_weight
    signature = inspect.signature(convert_weight)

    @functools.wraps(convert_weight)
    def convert_weight_unrounded(*args: Any, **kwargs: Any) -> Any:
        if signature.bind(*args, **kwargs).arguments["quantization"].kind != KIND:
            return convert_weight(*args, **kwargs)
        with _raw(module):
            return convert_weight(*args, **kwargs)

    rebind(module, "convert_weight", convert_weight_unrounded)
