"""Run a CUDA kernel on the CPU: its generated source, compiled as C++ with PTX's instructions as functions.

The host function of the launch is the real one, with its checks and its grid. What threads of a block, blocks of a
cluster or of a whole grid tell each other, they tell each other here (``cuda/threads.h``); asynchronous copies and
products are done at the latest or at the earliest moment that the kernel allows, so that a result that depends on
the moment shows. Nothing outside of the tensors that a launch is given may be read or written.
"""

import ctypes
import functools
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from cuda_source import as_cpp
from mma_problems import Case

from nvfp4_tvm.codegen.launch import lower_launch, with_host

_HEADERS = Path(__file__).parent / "cuda"
_OPTIONS = ("-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", f"-I{_HEADERS}")
_RUN = """
extern "C" const char* run({signature}, int* shape, Span* spans, int count, uint64_t order, int is_late) {{
  Index grid{{shape[0], shape[1], shape[2]}}, block{{shape[3], shape[4], shape[5]}};
  int blocks = grid.x * grid.y * grid.z, cluster = shape[6], together = shape[7] ? blocks : cluster;
  kernel_call = [&] {{ {kernel}({arguments}); }};
  given.assign(spans, spans + count);
  late = is_late;
  failure.clear();
  ptx::promised.clear();
  for (int first = 0; first < blocks && failure.empty(); first += together)
    run_blocks(first, std::min(together, blocks - first), grid, cluster, block, order);
  return failure.c_str();
}}
"""
#: Ways to run a kernel, all of which must give the same bits.
WAYS = (
    {"late": True, "order": 0},
    {"late": False, "order": 0},
    {"late": True, "order": 1},
    {"late": True, "order": 7},
)
_numbers = itertools.count()


def every_way(run, operands, out, ways=WAYS):
    """Run what `kernel_on_host` returned in several ways; return the output, if it is always the same."""
    first, *others = (run(operands, out, **way) for way in ways)
    differs = [
        str(way) for way, found in zip(ways[1:], others, strict=True) if found.tobytes() != first.tobytes()
    ]
    assert not differs, f"other bits than {ways[0]} with {', '.join(differs)}"
    return first


def check_rows(run, problem, rows):
    """Compare what `kernel_on_host` returned with float64 for some numbers of rows, the last in every way."""
    for M in rows:
        case = Case.random(problem, M)
        runs = run if M != rows[-1] else functools.partial(every_way, run)
        case.check(runs(case.operands, case.empty(problem)))


def kernel_on_host(kernel, target, edit=None):
    """Return ``f(operands, out, order=0, late=True)`` that runs the launches of a kernel and returns ``out``.

    Parameters
    ----------
    kernel : CudaKernel
        Its workspaces are full of NaN at first, or of ones.
    target, edit
        See `on_host`.
    """
    functions = [on_host(launch, target, edit) for launch in kernel.launches]

    def run(operands, out, **how):
        memory, M = {**operands, "out": out}, len(out)
        for workspace in kernel.workspaces:
            shape = tuple(map(int, workspace.shape(M)))
            poison = 0xFFFFFFFF if workspace.dtype == "uint32" else np.nan
            memory[workspace.name] = np.full(shape, poison, workspace.dtype)
        for launch, function in zip(kernel.launches, functions, strict=True):
            found = function(*(memory[name] for name in launch.arguments), **how)
            memory.update(zip(launch.arguments, found, strict=True))
        return memory["out"]

    return run


def on_host(launch, target, edit=None):
    """Return a function that calls a launch with NumPy arrays and returns all of them as they are afterwards.

    It takes two more arguments. ``order`` is that in which threads take turns: 0 that of their numbers, 1 the
    reverse; others are shuffled. ``late``: asynchronous work is done when it has to be, not when it begins.

    Parameters
    ----------
    launch : Launch
    target : Target
        Of CUDA.
    edit : callable, optional
        Changes the source, to see that a mistake shows.

    Raises
    ------
    RuntimeError
        From the function, where threads wait for what does not come, or do what a GPU does not take.
    """
    name = f"on_host_{next(_numbers)}"
    target = with_host(target)
    lowered = lower_launch(launch, name, target)
    source = lowered.source if edit is None else edit(lowered.source)
    code, parameters = as_cpp(source, f"{name}_kernel")
    run = _compile(code + _RUN.format(
        signature=", ".join(parameters), kernel=f"{name}_kernel",
        arguments=", ".join(parameter.rsplit(" ", 1)[1].lstrip("&") for parameter in parameters),
    ))  # fmt: skip
    types = [
        ctypes.c_void_p if "*" in parameter or "&" in parameter else ctypes.c_int64
        for parameter in parameters
    ]
    (info,) = lowered.kernels.values()
    tags = [tag for tag in info.launch_param_tags if tag != "tirx.use_programtic_dependent_launch"]
    # Blocks that wait for others, over memory, must all run
    whole_grid = "acquire_gpu" in source
    how = {}

    def kernel(*values):
        values = [value.value if isinstance(value, ctypes.c_void_p) else value for value in values]
        extents = dict(zip(tags, values[len(types) :], strict=True))
        axes = [f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx", "clusterCtaIdx") for axis in "xyz"]
        extents = [extents.get(axis, 1) for axis in axes]
        assert extents[7:] == [1, 1], "clusters along x"
        shape = (ctypes.c_int * 8)(*extents[:7], whole_grid)
        given = [kind(value) for kind, value in zip(types, values, strict=False)]
        failure = run(*given, shape, *how["spans"], how["order"], how["late"])
        if failure:
            raise RuntimeError(failure.decode())

    tvm_ffi.register_global_func(f"{name}_kernel", kernel, override=True)
    with target:
        module = tvm.get_global_func("target.build.llvm")(lowered.host, target.host)

    def call(*arrays, order=0, late=True):
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        how.update(order=order, late=late, spans=_spans(tensors))
        _call(module[name], tensors)
        return [tensor.numpy() for tensor in tensors]

    return call


def _compile(code):
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder) / "kernel.cc", Path(folder) / "kernel.so"
        file.write_text(code)
        subprocess.run([os.environ.get("CXX", "g++"), *_OPTIONS, "-o", library, file], check=True)
        run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p
    return lambda *arguments: run(
        *arguments[:-2], ctypes.c_uint64(arguments[-2]), ctypes.c_int(arguments[-1])
    )


#: Of ``DLTensor::device`` in a tensor object: behind the object's header (24 bytes) and the data pointer.
_DEVICE_OFFSET = 24 + 8
_CPU, _CUDA = 1, 2


def _encode_tensor_map(map_, _dtype, rank, data, columns, rows, row_bytes, box_columns, box_rows, *rest):
    """Fill the ``CUtensorMap`` of ``cuda/ptx.h`` as ``cuTensorMapEncodeTiled`` fills the real one."""
    *element_strides, interleaved, swizzle, _l2, _outside = rest
    assert (rank, element_strides, interleaved) == (2, [1, 1], 0)
    fields = (data.value, columns, rows, row_bytes, box_columns, box_rows, swizzle, row_bytes // columns)
    assert row_bytes % 16 == 0 and data.value % 16 == 0, "as the driver wants it"
    ctypes.memmove(map_.value, (ctypes.c_uint64 * len(fields))(*fields), 8 * len(fields))


#: What host functions call that this machine has not.
_STAND_INS = {"__tvm_set_device": lambda *_: None, "runtime.cuTensorMapEncodeTiled": _encode_tensor_map}


def _spans(tensors):
    """Return address and bytes of each tensor, and how many there are."""
    spans = [number for t in tensors for number in (t.data_ptr(), t.numpy().nbytes)]
    return (ctypes.c_uint64 * len(spans))(*spans), len(tensors)


def _call(function, tensors):
    """Call a host function for CUDA with tensors of the CPU."""
    devices = [ctypes.c_int32.from_address(tensor.__chandle__() + _DEVICE_OFFSET) for tensor in tensors]
    assert all(device.value == _CPU for device in devices)
    real = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in _STAND_INS}
    try:
        for name, stand_in in _STAND_INS.items():
            tvm_ffi.register_global_func(name, stand_in, override=True)
        for device in devices:
            device.value = _CUDA
        function(*tensors)
    finally:
        for device in devices:
            device.value = _CPU
        for name, function_ in real.items():
            if function_ is not None:
                tvm_ffi.register_global_func(name, function_, override=True)
