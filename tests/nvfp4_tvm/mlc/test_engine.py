"""MLC-LLM's engine on libraries of this package: what `serve` and `chat` say is what transformers computes.

Where the engine is: `MLC_LIBRARY_PATH`, beside the variables of tests/helpers/mlc_llm_model.py.
"""

import concurrent.futures
import os
import pty
import time

import mlc_llm_engine
import mlc_llm_model
import pytest
from ascii_tokenizer import write_tokenizer
from make_checkpoints import make_compressed_tensors, make_modelopt
from reference import reference_model

from benchmarks import verify_mlc, verify_mlc_engine

pytestmark = [
    pytest.mark.skipif(bool(mlc_llm_engine.missing()), reason=str(mlc_llm_engine.missing())),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
STEPS = verify_mlc_engine.STEPS
BOS = 1


class Model:
    """A converted checkpoint with its reference."""

    def __init__(self, folder, make, quantization, **settings):
        self.checkpoint, self.out = folder / "checkpoint", folder / "out"
        make(self.checkpoint, **settings)
        verify_mlc.old_spelling(self.checkpoint / "config.json")
        self.tokenizer = write_tokenizer(self.checkpoint)
        self.reference = reference_model(self.checkpoint)
        mlc_llm_model.configure(self.checkpoint, self.out, quantization)
        mlc_llm_model.convert(self.checkpoint, self.out, quantization)

    def greedy(self, count=1, first=()):
        """Return texts, none of which leaves a choice to rounding, and what greedy decoding says to each."""
        return verify_mlc_engine.clear_texts(self.reference, self.tokenizer, count, first)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    model = Model(folder, make_modelopt, "nvfp4_skel", arch="llama")
    model.library = mlc_llm_model.compile(model.out)
    return model


def test_serve_says_what_transformers_does_to_one_request_and_to_several_at_once(model, tmp_path):
    expected = model.greedy(4)

    def ask(prompt):
        answer = server.post("completions", prompt=prompt, max_tokens=STEPS, temperature=0)
        return answer["choices"][0]["text"]

    with mlc_llm_engine.serve(model.out, "--model-lib", model.library, log=tmp_path / "log") as server:
        assert {prompt: ask(prompt) for prompt in expected} == expected
        with concurrent.futures.ThreadPoolExecutor(len(expected)) as pool:
            assert dict(zip(expected, pool.map(ask, expected), strict=True)) == expected


def test_serve_compiles_by_itself(model, tmp_path):
    """Without ``--model-lib``."""
    ((prompt, expected),) = model.greedy().items()
    env = mlc_llm_model.child_environment(tmp_path)
    with mlc_llm_engine.serve(model.out, log=tmp_path / "log", env=env) as server:
        answer = server.post("completions", prompt=prompt, max_tokens=STEPS, temperature=0)
    assert answer["choices"][0]["text"] == expected
    assert list((tmp_path / "home" / "model_lib").glob("*.so"))


def test_chat_says_what_transformers_does(model):
    """On a terminal, as `chat` asks for one."""
    ((prompt, expected),) = model.greedy(first=[BOS]).items()
    ours, theirs = pty.openpty()
    process = mlc_llm_engine.start(
        "chat", model.out, "--model-lib", model.library, "--device", "cpu",
        stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def until(text, count=1):
        nonlocal shown
        end = time.monotonic() + 300
        while shown.count(text) < count and time.monotonic() < end:
            shown += os.read(ours, 65536).decode()
        assert shown.count(text) >= count, shown

    try:
        until(">>>")
        for line in (f"/set temperature=0;max_tokens={STEPS}", prompt):
            os.write(ours, f"{line}\r".encode())
            until(">>>", shown.count(">>>") + 1)
        assert expected in shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_serve_with_layers_that_the_checkpoint_leaves_unquantized(tmp_path):
    ignore = ("lm_head", "model.layers.1.self_attn.o_proj")
    model = Model(tmp_path, make_compressed_tensors, "nvfp4_skel_f16", arch="qwen3", ignore=ignore)
    library = mlc_llm_model.compile(model.out)
    expected = model.greedy(2)
    with mlc_llm_engine.serve(model.out, "--model-lib", library, log=tmp_path / "log") as server:
        for prompt, text in expected.items():
            answer = server.post("completions", prompt=prompt, max_tokens=STEPS, temperature=0)
            assert answer["choices"][0]["text"] == text
