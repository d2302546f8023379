"""A tokenizer, checkpoints one compiled folder, and a way to run commands."""

import sys
from pathlib import Path
from typing import NamedTuple

import make_checkpoints
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nvfp4_tvm.cli.main import main

ROOT = Path(__file__).parents[3]
VOCABULARY = 512
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run ``nvfp4-tvm`` in this process, as its entry point does."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nvfp4-tvm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Done(0 if code is None else code, out, err)

    return run


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE, as Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(ROOT / "LICENSE").read_text()], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory, byte_tokenizer):
    """An unquantized checkpoint with a tokenizer."""
    folder = make_checkpoints.make_plain(tmp_path_factory.mktemp("plain"), config=TINY)
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def nvfp4_folder(tmp_path_factory, plain_folder):
    """The same, quantized."""
    from nvfp4_tvm.quantize import quantize_checkpoint

    folder = tmp_path_factory.mktemp("nvfp4")
    quantize_checkpoint(plain_folder, folder)
    return folder


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory, nvfp4_folder):
    """The same, compiled for this CPU."""
    from nvfp4_tvm.compiler import compile

    return compile(nvfp4_folder, tmp_path_factory.mktemp("compiled") / "out", target="llvm").path
