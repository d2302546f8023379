"""Choosing the next token from logits: greedy, temperature and nucleus (top-p) sampling, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvfp4_tvm.errors import NVFP4Error


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens.

    Attributes
    ----------
    temperature : float
        Divides the logits; 0 takes the largest one (the first, if several are equal).
    top_p : float
        Samples among the fewest most probable tokens whose probabilities reach this sum
        (https://arxiv.org/abs/1904.09751, section 3.1); 1 keeps all.

    Raises
    ------
    NVFP4Error
        If temperature is negative or not finite, or top_p outside (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise NVFP4Error(f"temperature is {self.temperature}, expected a finite number >= 0")
        if not 0 < self.top_p <= 1:
            raise NVFP4Error(f"top_p is {self.top_p}, expected a number above 0 and at most 1")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return float64 ``[vocab]`` probabilities for float ``[vocab]`` logits.

        Raises
        ------
        NVFP4Error
            If a logit is NaN or no logit is finite.
        """
        best = _best(logits)
        if self.temperature == 0:
            probabilities = np.zeros(logits.shape, np.float64)
            probabilities[best] = 1.0
            return probabilities
        # subtracting first keeps a tiny temperature from overflowing the quotient of the largest logit
        exponents = (logits.astype(np.float64) - float(logits[best])) / self.temperature
        probabilities = np.exp(exponents)
        probabilities /= probabilities.sum()
        if self.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            reached = np.cumsum(probabilities[order]) - probabilities[order]
            probabilities[order[reached >= self.top_p]] = 0.0
            probabilities /= probabilities.sum()
        return probabilities

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """Choose a token id from float ``[vocab]`` logits.

        Raises
        ------
        NVFP4Error
            If a logit is NaN or no logit is finite.
        """
        if self.temperature == 0:
            return _best(logits)
        probabilities = self.probabilities(logits)
        return int(rng.choice(probabilities.size, p=probabilities))


def _best(logits: np.ndarray) -> int:
    best = int(np.argmax(logits))  # NaN counts as the largest
    if not np.isfinite(logits[best]):
        raise NVFP4Error(
            f"logits: found {logits[best]} for token {best}, expected finite numbers; the weights or scales "
            f"overflow the model's dtype: compile with a wider one"
        )
    return best
