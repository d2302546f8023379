"""Running a compiled decoder: one sequence, its KV cache, prefill, decode and generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.runtime import ShapeTuple

from nvfp4_tvm.errors import LibraryError, NVFP4Error
from nvfp4_tvm.models.kv_cache import PAGE_SIZE
from nvfp4_tvm.models.values import positive_integer
from nvfp4_tvm.runtime.sampling import Sampling
from nvfp4_tvm.runtime.threads import configure_threads

_SEQUENCE = 0


@dataclass(frozen=True)
class GenerationResult:
    """What :meth:`Runner.generate` did.

    Attributes
    ----------
    token_ids : tuple of int
        The new tokens; a stop token that ended them is the last.
    prompt_tokens : int
        Length of the prompt.
    seconds_prefill : float
        From the call to the first new token.
    seconds_decode : float
        From the first new token to the last.
    finish_reason : str
        "stop" (a stop token), "length" (max_new_tokens) or "context" (the context is full).
    """

    token_ids: tuple[int, ...]
    prompt_tokens: int
    seconds_prefill: float
    seconds_decode: float
    finish_reason: str

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: tokens after the first by ``seconds_decode``; 0 if there was one token only."""
        decoded = len(self.token_ids) - 1
        return decoded / self.seconds_decode if decoded > 0 and self.seconds_decode > 0 else 0.0


class Runner:
    """A compiled decoder with its weights and one sequence's KV cache.

    Parameters
    ----------
    library : tvm.runtime.Module, tvm.runtime.Executable, Path or str
        What ``tvm.compile`` returned, or the path of an exported library.
    params : mapping or sequence
        Weights: by name, or in the order of ``param_names``. tvm tensors on ``device``, or arrays to
        copy there.
    metadata : mapping
        ``param_names`` (list of str: the weight arguments of the functions, in order), ``vocab_size``,
        ``context_length`` and ``prefill_chunk_size`` (integers, in tokens).
    device : tvm.runtime.Device
        Where to run.

    Raises
    ------
    LibraryError
        If the library cannot be loaded, lacks a function, or the parameters do not fit ``param_names``.
    """

    def __init__(
        self,
        library: Any,
        params: Mapping[str, Any] | Sequence[Any],
        metadata: Mapping[str, Any],
        device: tvm.runtime.Device,
    ):
        configure_threads()
        self.device = device
        self.vocab_size = positive_integer(metadata, "vocab_size")
        self.context_length = positive_integer(metadata, "context_length")
        self.prefill_chunk_size = min(positive_integer(metadata, "prefill_chunk_size"), self.context_length)
        self._params = self._place(params, metadata)
        self._vm = _virtual_machine(library, device)
        self._prefill, self._score, self._decode, create = (
            _function(self._vm, name) for name in ("prefill", "score", "decode", "create_paged_kv_cache")
        )
        clear, add_sequence, begin, end = (
            tvm.get_global_func(f"vm.builtin.kv_state_{name}")
            for name in ("clear", "add_sequence", "begin_forward", "end_forward")
        )
        self._clear, self._add_sequence, self._begin, self._end = clear, add_sequence, begin, end
        sizes = (1, self.context_length, self.prefill_chunk_size, PAGE_SIZE, 0)
        self._cache = create(*(ShapeTuple([size]) for size in sizes))
        self._position = 0
        self.reset()

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        return self._position

    def reset(self) -> None:
        """Forget the sequence."""
        self._clear(self._cache)
        self._add_sequence(self._cache, _SEQUENCE)
        self._position = 0

    def prefill(self, token_ids: Sequence[int]) -> np.ndarray:
        """Append tokens to the sequence, in chunks of ``prefill_chunk_size``.

        Returns
        -------
        numpy.ndarray
            float32 [vocab]: logits of the token that follows.

        Raises
        ------
        NVFP4Error
            If there are no tokens, they do not fit the context, or one is outside the vocabulary.
        """
        return self._chunks(self._prefill, self._checked(token_ids))[-1][-1]

    def decode(self, token_id: int) -> np.ndarray:
        """Append one token to the sequence; float32 [vocab] logits of the next.

        Raises
        ------
        NVFP4Error
            If the token does not fit the context or is outside the vocabulary.
        """
        return self._forward(self._decode, self._checked([token_id]))[-1]

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Score a text from an empty cache.

        Returns
        -------
        numpy.ndarray
            float32 [len, vocab]: row i holds the logits of the token after ``token_ids[i]``.

        Raises
        ------
        NVFP4Error
            As :meth:`prefill`.
        """
        self.reset()
        return np.concatenate(self._chunks(self._score, self._checked(token_ids)))

    def generate(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Sequence[int] = (),
        on_token: Callable[[int], None] | None = None,
    ) -> GenerationResult:
        """Continue a text from an empty cache.

        Parameters
        ----------
        token_ids : sequence of int
            The prompt.
        max_new_tokens : int
            At least 1.
        temperature, top_p : float
            See :class:`~nvfp4_tvm.runtime.sampling.Sampling`; temperature 0 is greedy.
        seed : int, optional
            Makes sampling repeatable.
        stop_token_ids : sequence of int
            Tokens that end the text.
        on_token : callable, optional
            Called with each new token as soon as it is chosen.

        Raises
        ------
        NVFP4Error
            If the prompt is empty, does not fit the context or holds ids outside the vocabulary, or an
            option is out of range.
        """
        sampling = Sampling(temperature, top_p)
        if max_new_tokens < 1:
            raise NVFP4Error(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        rng, stop = np.random.default_rng(seed), frozenset(stop_token_ids)
        start = first = now = time.perf_counter()
        self.reset()
        new: list[int] = []
        logits, reason = self.prefill(token_ids), "length"
        while True:
            token = sampling.choose(logits, rng)
            now = time.perf_counter()
            first = first if new else now
            new.append(token)
            if on_token is not None:
                on_token(token)
            if token in stop:
                reason = "stop"
            elif len(new) < max_new_tokens:
                if self._position < self.context_length:
                    logits = self.decode(token)
                    continue
                reason = "context"
            return GenerationResult(tuple(new), len(token_ids), first - start, now - first, reason)

    # -- one forward pass

    def _checked(self, token_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(token_ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise NVFP4Error(
                f"token ids: found {ids.dtype} of shape {list(ids.shape)}, expected at least one integer"
            )
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise NVFP4Error(
                f"token ids: found {outside[0]}, expected 0..{self.vocab_size - 1} (the vocabulary)"
            )
        if self._position + ids.size > self.context_length:
            raise NVFP4Error(
                f"token ids: found {ids.size} after {self._position} in the cache, expected at most "
                f"{self.context_length} in all; compile with a longer context or shorten the text"
            )
        return ids.astype(np.int32)

    def _chunks(self, function: Any, ids: np.ndarray) -> list[np.ndarray]:
        size = self.prefill_chunk_size
        return [self._forward(function, ids[start : start + size]) for start in range(0, ids.size, size)]

    def _forward(self, function: Any, ids: np.ndarray) -> np.ndarray:
        self._begin(self._cache, ShapeTuple([_SEQUENCE]), ShapeTuple([ids.size]))
        logits = function(tvm.runtime.tensor(ids[None], self.device), self._cache, *self._params)
        self._end(self._cache)
        self._position += ids.size
        return logits.numpy()[0]

    # -- loading

    def _place(self, params: Mapping[str, Any] | Sequence[Any], metadata: Mapping[str, Any]) -> list[Any]:
        names = list(metadata.get("param_names", ()))
        if isinstance(params, Mapping):
            missing = [name for name in names if name not in params]
            if missing:
                raise LibraryError(
                    f"parameters: found no {missing[0]}, expected it by param_names; compile again"
                )
            params = [params[name] for name in names]
        if len(params) != len(names):
            raise LibraryError(
                f"parameters: found {len(params)}, expected {len(names)} by param_names; compile again"
            )
        return [
            param if isinstance(param, tvm.runtime.Tensor) else tvm.runtime.tensor(param, self.device)
            for param in params
        ]


def _virtual_machine(library: Any, device: tvm.runtime.Device) -> relax.VirtualMachine:
    if isinstance(library, (str, Path)):
        try:
            library = tvm.runtime.load_module(str(library))
        except Exception as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LibraryError(f"{library}: cannot be loaded ({first_line}); compile again") from None
    return relax.VirtualMachine(library, device)


def _function(vm: relax.VirtualMachine, name: str) -> Any:
    try:
        return vm[name]
    except AttributeError:
        raise LibraryError(
            f"library: found no function {name}, expected it of a decoder; compile again"
        ) from None
