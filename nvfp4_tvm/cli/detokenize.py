"""Text from token ids, as the ids come: `tokenizers` decodes, and what may still change is held back."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from nvfp4_tvm.errors import CheckpointError

TOKENIZER = "tokenizer.json"

# What decoders write for bytes that are no UTF-8, so also for the first bytes of a character to come
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Load a folder's ``tokenizer.json``; None if there is none.

    Raises
    ------
    CheckpointError
        If the file cannot be parsed.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(
            f"{path}: found no tokenizer ({error}), expected the tokenizers library's JSON"
        ) from None


class TextStream:
    """Decode a growing sequence of token ids piece by piece.

    Decoding depends on neighbours: a character may be spread over several tokens, and some decoders treat the
    first token of a text differently. So the last piece is decoded again with what follows it, and the
    difference is the new piece. (`tokenizers.decoders.DecodeStream` does the same, but raises an exception on
    bytes that turn out to be no UTF-8, and never returns an unfinished end.)

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # ids whose text was returned
        self._context = 0  # the first id of the piece before that

    def feed(self, token_id: int) -> str:
        """Append a token; return the text that is now certain, often empty."""
        self._ids.append(token_id)
        piece = self._piece()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return piece

    def finish(self) -> str:
        """Return what was held back."""
        piece = self._piece()
        self._context = self._shown = len(self._ids)
        return piece

    def _piece(self) -> str:
        before = self._decode(self._context, self._shown)
        return self._decode(self._context, len(self._ids))[len(before) :]

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=True)
