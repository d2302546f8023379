"""Running a folded module's ``transform_params`` over a checkpoint, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
import tvm.relax.op.vm  # LazyTransformParams of TVM 0.27 uses it without importing it
import tvm_ffi
from tvm import relax
from tvm.s_tir import dlight as dl
from tvm.target import Target

from nvfp4_tvm.passes.fold_weights import TRANSFORM
from nvfp4_tvm.runtime.threads import configure_threads
from nvfp4_tvm.schedules.repack import CPURepack

GetItem = Callable[[int], np.ndarray]
SetItem = Callable[[int, np.ndarray], None]


def split_transform(mod: tvm.IRModule) -> tuple[tvm.IRModule, tvm.IRModule | None]:
    """Separate ``transform_params`` from the functions that run at every token.

    Returns
    -------
    tuple
        The model without it, and a module of it alone, None if nothing was lifted.
    """
    functions = dict(mod.functions_items())
    transform = next((gvar for gvar in functions if gvar.name_hint == TRANSFORM), None)
    if transform is None:
        return mod, None
    alone = tvm.IRModule({TRANSFORM: functions.pop(transform)})
    return tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos), alone


def build_transform(transform: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Build ``transform_params`` for the CPU, lazy: it calls ``get_item(i)`` and ``set_item(i, tensor)``."""
    with target:
        lazy = tvm.transform.Sequential(
            [
                relax.transform.LegalizeOps(),
                dl.ApplyDefaultSchedule(CPURepack()),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.LazyTransformParams(),
            ]
        )(transform)
    return relax.build(lazy, target)


def run_transform(executable: relax.VMExecutable, get_item: GetItem, set_item: SetItem) -> None:
    """Run a lazy transform: each parameter is read when first needed and dropped after its last use.

    Parameters
    ----------
    executable : relax.VMExecutable
        From :func:`build_transform`.
    get_item : callable
        Canonical parameter number i as a contiguous array.
    set_item : callable
        Takes packed parameter number i; the array is only valid during the call.
    """

    configure_threads()

    def get(index: int) -> tvm.runtime.Tensor:
        return tvm.runtime.tensor(get_item(int(index)))

    def put(index: int, value: tvm.runtime.Tensor) -> None:
        set_item(int(index), value.numpy())

    tvm.register_global_func("get_item", get, override=True)
    tvm.register_global_func("set_item", put, override=True)
    try:
        relax.VirtualMachine(executable, tvm.cpu())[TRANSFORM]()
    finally:
        for name in ("get_item", "set_item"):
            tvm_ffi.registry.remove_global_func(name)
