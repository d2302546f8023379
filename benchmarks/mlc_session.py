"""A library of MLC-LLM in relax.VirtualMachine with its paged KV cache: what MLC's engine does, in Python.

The order of calls is that of mlc-llm's cpp/serve/model.cc (BatchPrefill, BatchDecode).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax
from tvm_ffi import Shape

from benchmarks.mlc_weights import Weights
from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime

#: As MLC's engine.
PAGE_SIZE = 16


class Session:
    """A library, its parameters and its KV cache.

    Parameters
    ----------
    library : Path
        The shared library.
    described : dict
        What was written beside it.
    device : str
        ``cuda`` or ``cpu``.
    tokens : int
        Capacity of the KV cache in all.
    """

    def __init__(self, library: Path, described: dict[str, Any], device: str, tokens: int) -> None:
        self.shape, self.dtype = described["shape"], getattr(torch, described["model_dtype"])
        if device == "cuda" and not load_cuda_runtime():
            raise RuntimeError("TVM's CUDA runtime does not load on this machine")
        self.device_name, self.device = device, tvm.device(device, 0)
        self.vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), self.device)
        self.metadata = json.loads(self.vm["_metadata"]())
        self.weights = Weights(self.metadata["params"], {"vocab_size": self.shape["vocab_size"]}, device)
        self.params = self.weights.tensors()
        self.chunk, self.batch = self.metadata["prefill_chunk_size"], self.metadata["max_batch_size"]
        sizes = (self.batch, tokens, self.chunk, PAGE_SIZE, 0)
        self.cache = self.vm["create_tir_paged_kv_cache"](*(Shape([size]) for size in sizes))
        if self.vm.module.implements_function("cuda_graph_alloc_init"):
            self.vm["cuda_graph_alloc_init"]()
        self.state = {
            name: tvm.get_global_func(f"vm.builtin.kv_state_{name}")
            for name in ("add_sequence", "remove_sequence", "begin_forward", "end_forward", "popn", "clear")
        }

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device_name != "cpu":
            self.device.sync()

    def embeddings(self, seed: int, *leading: int) -> torch.Tensor:
        """Return random inputs of the first layer [*leading, hidden]."""
        generator = torch.Generator(self.device_name).manual_seed(seed)
        shape = (*leading, self.shape["hidden_size"])
        values = torch.randn(shape, generator=generator, device=self.device_name, dtype=torch.float32)
        return values.to(self.dtype)

    def forward(self, function: str, x: torch.Tensor, ids: list[int], lengths: list[int], *more: Any) -> Any:
        """Run a function of the library between begin_forward and end_forward; return its logits."""
        self.state["begin_forward"](self.cache, Shape(ids), Shape(lengths))
        result = self.vm[function](tvm.runtime.from_dlpack(x), *more, self.cache, self.params)
        self.state["end_forward"](self.cache)
        return result[0]

    def prefill(self, x: torch.Tensor, ids: list[int], lengths: list[int]) -> Any:
        """Append the tokens of x [1, sum(lengths), hidden]; return their last logits [1, len(ids), vocab]."""
        last = torch.tensor(lengths, dtype=torch.int32).cumsum(0).to(torch.int32) - 1
        positions = tvm.runtime.from_dlpack(last.to(self.device_name))
        return self.forward("batch_prefill", x, ids, lengths, positions)

    def decode(self, x: torch.Tensor, ids: list[int], function: str = "batch_decode") -> Any:
        """Append a token to each sequence, x [len(ids), 1, hidden]; return logits [len(ids), 1, vocab]."""
        return self.forward(function, x, ids, [1] * len(ids))

    def fill(self, count: int, context: int) -> None:
        """Begin ``count`` sequences of ``context`` random tokens, as many at once as a chunk takes."""
        self.state["clear"](self.cache)
        at_once = max(1, self.chunk // context)
        for low in range(0, count, at_once):
            ids = list(range(low, min(low + at_once, count)))
            for sequence in ids:
                self.state["add_sequence"](self.cache, sequence)
            self.prefill(self.embeddings(low, 1, context * len(ids)), ids, [context] * len(ids))
        self.synchronize()

    def time(self, step: Callable[[], Any], undo: Callable[[], Any], repeats: int, warm: int) -> list[float]:
        """Return milliseconds of synchronised calls of ``step``; ``undo`` follows each, outside of the time."""
        times = []
        for index in range(warm + repeats):
            self.synchronize()
            start = time.perf_counter()
            step()
            self.synchronize()
            if index >= warm:
                times.append((time.perf_counter() - start) * 1e3)
            undo()
        return times

    def pop(self, ids: list[int], count: int = 1) -> None:
        """Take the last tokens of sequences back."""
        for sequence in ids:
            self.state["popn"](self.cache, sequence, count)

    def breakdown(self, step: Callable[[], Any]) -> dict[str, float]:
        """Return the milliseconds of each function that the machine calls in ``step``, synchronised one by one.

        What a captured CUDA graph launches counts as the graph's. The instrument stays: measure times before.
        """
        spent: dict[str, float] = {}
        starts: list[float] = []

        def instrument(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
            self.synchronize()
            now = time.perf_counter()
            if before:
                starts.append(now)
            else:
                spent[name] = spent.get(name, 0.0) + (now - starts.pop()) * 1e3
            return 0  # VMInstrumentReturnKind: no operation

        self.vm.set_instrument(instrument)
        step()
        return spent
