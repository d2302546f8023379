"""Running MLC-LLM's command line and the libraries it compiles, without its engine.

`MLC_LLM_SOURCE` names a checkout of mlc-llm. `MLC_LLM_SHIM` names a script that runs the checkout's Python on the
TVM of this environment (``SHIM --mlc CHECKOUT/python SUBCOMMAND ...``); without it, ``python -m mlc_llm`` does.
The engine is in mlc_llm_engine.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SOURCE, SHIM = os.environ.get("MLC_LLM_SOURCE"), os.environ.get("MLC_LLM_SHIM")


def missing() -> str | None:
    """Return why MLC-LLM cannot be run here, None if it can."""
    if not SOURCE:
        return "MLC_LLM_SOURCE does not name a checkout of mlc-llm"
    package = Path(SOURCE) / "python" / "mlc_llm"
    return None if package.is_dir() else f"MLC_LLM_SOURCE: {package} is no folder"


def revision() -> str:
    """Return the commit of the checkout."""
    command = ["git", "-C", SOURCE, "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def command_line():
    """Return how a command line of MLC-LLM begins, and the environment for it."""
    python = str(Path(SOURCE) / "python")
    command = [sys.executable, SHIM, "--mlc", python] if SHIM else [sys.executable, "-m", "mlc_llm"]
    path = os.pathsep.join(filter(None, (python, os.environ.get("PYTHONPATH"))))
    return command, {**os.environ, "PYTHONPATH": path}


def child_environment(folder):
    """Return variables with which child processes run ``python -m mlc_llm`` as `mlc_llm` here does.

    For just-in-time compilation, whose child has the shim only if start-up brings it: a file in ``folder``.
    """
    start = f"import runpy; runpy.run_path({SHIM!r})['apply']()" if SHIM else ""
    (Path(folder) / "sitecustomize.py").write_text(start)
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), command_line()[1]["PYTHONPATH"]]),
        "MLC_LLM_HOME": str(Path(folder) / "home"),
    }


def mlc_llm(*arguments, env=None, check=True, serial=False):
    """Run a subcommand of MLC-LLM and return what `subprocess.run` does, output as text.

    ``serial`` is for models that it does not compile for the CPU otherwise (mlc_llm_serial.py).
    """
    command, environment = command_line()
    if serial:
        command = [sys.executable, str(Path(__file__).with_name("mlc_llm_serial.py"))]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment | (env or {}), capture_output=True, text=True
    )
    if check and done.returncode:
        raise RuntimeError(f"mlc_llm {arguments[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def configure(checkpoint, out, quantization, *options):
    """Run gen_config."""
    mlc_llm(
        "gen_config", checkpoint, "--quantization", quantization, "--conv-template", "LM", "-o", out, *options
    )


def convert(checkpoint, out, quantization, *, env=None):
    """Run convert_weight."""
    mlc_llm(
        "convert_weight", checkpoint, "--quantization", quantization, "--device", "cpu", "-o", out, env=env
    )


def compile(out, *options, device="cpu:0", serial=False):
    """Run compile, by default for the CPU, and return the library."""
    library = Path(out) / "lib.so"
    mlc_llm("compile", out, "--device", device, "-o", library, *options, serial=serial)
    return library


def read_parameters(folder):
    """Return the parameters in a folder that convert_weight wrote, by name."""
    import ml_dtypes  # noqa: F401  bfloat16

    folder, parameters = Path(folder), {}
    for shard in json.loads((folder / "tensor-cache.json").read_text())["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        for record in shard["records"]:
            stored = {"raw": record["dtype"], "f32-to-bf16": "bfloat16"}[record["format"]]
            array = np.frombuffer(data, np.dtype(stored), int(np.prod(record["shape"])), record["byteOffset"])
            parameters[record["name"]] = array.reshape(record["shape"]).astype(record["dtype"])
    return parameters


class CompiledModel:
    """A compiled library on a device, ``cpu`` or ``cuda``, with its parameters.

    Its KV cache supports sliding windows, where the model has one: as MLC-LLM's engine makes it.
    """

    def __init__(self, library, parameters, *, device="cpu"):
        import tvm
        from tvm import relax

        self._tvm, self._device = tvm, tvm.device(device)
        self._vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), self._device)
        self.metadata = json.loads(self._vm["_metadata"]())
        names = [parameter["name"] for parameter in self.metadata["params"]]
        assert sorted(names) == sorted(parameters)
        self._parameters = [self._tensor(np.ascontiguousarray(parameters[name])) for name in names]
        self.window, chunk = self.metadata["sliding_window_size"], self.metadata["prefill_chunk_size"]
        shapes = [1], [chunk], [chunk], [16], [int(self.window > 0)]
        self._cache = self._vm["create_tir_paged_kv_cache"](*map(tvm.runtime.ShapeTuple, shapes))

    def _tensor(self, array):
        return self._tvm.runtime.tensor(array, self._device)

    def _state(self, name, *arguments):
        return self._tvm.get_global_func(f"vm.builtin.{name}")(self._cache, *arguments)

    def _forward(self, function, tokens, shape, *arguments):
        shape_of, parameters = self._tvm.runtime.ShapeTuple, self._parameters
        embedded = self._vm["embed"](self._tensor(np.asarray(tokens, np.int32)), parameters)
        reshape = self._tvm.get_global_func("vm.builtin.reshape")
        embedded = reshape(embedded, shape_of([*shape, embedded.shape[-1]]))
        self._state("kv_state_begin_forward", shape_of([0]), shape_of([len(tokens)]))
        logits, _ = self._vm[function](embedded, *arguments, self._cache, parameters)
        self._state("kv_state_end_forward")
        return logits.numpy().reshape(-1, logits.shape[-1])[-1]

    def steps(self, prompt, tokens, *, batch=False):
        """Return the logits after a prompt and after each of the tokens, ``[1 + len(tokens), vocab]``."""
        self._state("kv_state_clear")
        self._state("kv_state_add_sequence", 0)
        if self.window > 0:
            self._state("attention_kv_cache_enable_sliding_window_for_seq", 0, self.window, 0)
        last = self._tensor(np.array([len(prompt) - 1], np.int32))
        prefill, decode = ("batch_prefill", "batch_decode") if batch else ("prefill", "decode")
        extra = (last,) if batch else ()
        rows = [self._forward(prefill, prompt, (1, len(prompt)), *extra)]
        rows += [self._forward(decode, [token], (1, 1)) for token in tokens]
        return np.stack(rows)


def run_python(code, *arguments):
    """Run Python code that can import mlc_llm as the subcommands do; return what it prints."""
    start = f"import runpy, sys; sys.path.insert(0, {str(Path(SOURCE) / 'python')!r})\n"
    if SHIM:
        start += f"runpy.run_path({SHIM!r})['apply']()\n"
    done = subprocess.run([sys.executable, "-c", start + code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout
