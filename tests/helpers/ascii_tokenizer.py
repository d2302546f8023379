"""A tokenizer all of whose tokens are ASCII, for models that speak at random."""

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<unk>", "<s>", "</s>")
_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def write_tokenizer(folder, size=512):
    """Write the files of a byte-level tokenizer with so many tokens into a folder; return the tokenizer.

    Tokens are the printable characters and pairs of letters, with a space in front of the first few. Whatever a
    model chooses decodes to text, and different tokens to different text.
    """
    characters = [chr(code) for code in range(33, 127)] + ["\u0120"]  # the byte-level name of a space
    pairs = itertools.islice(
        itertools.chain((("\u0120", a) for a in _LETTERS), itertools.product(_LETTERS, _LETTERS)),
        size - len(SPECIAL) - len(characters),
    )
    merges = [(a, b) for a, b in pairs]
    vocabulary = [*SPECIAL, *characters, *(a + b for a, b in merges)]
    assert len(set(vocabulary)) == size
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    (Path(folder) / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return tokenizer
