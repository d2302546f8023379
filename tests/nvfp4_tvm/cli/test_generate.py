import json
import shutil

import numpy as np
import pytest

from nvfp4_tvm.cli.generate import parse_token_ids
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.runtime.folder import load

pytestmark = pytest.mark.xdist_group("compiled")


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory, compiled_folder):
    """A compiled folder without a tokenizer."""
    folder = shutil.copytree(compiled_folder, tmp_path_factory.mktemp("bare") / "out")
    (folder / "tokenizer.json").unlink()
    return folder


def test_json_holds_greedy_tokens(cli, compiled_folder, byte_tokenizer):
    done = cli("generate", compiled_folder, "--token-ids", "3,4,5", "--max-new-tokens", "6", "--json")
    assert done.code == 0 and done.err == ""
    report = json.loads(done.out)
    runner = load(compiled_folder)
    expected, ids = [], [3, 4, 5]
    for _ in range(6):
        expected.append(int(np.argmax(runner.logits(ids)[-1])))
        ids.append(expected[-1])
        if expected[-1] == 2:
            break
    assert report["token_ids"] == expected and report["new_tokens"] == len(expected)
    assert report["prompt_token_ids"] == [3, 4, 5] and report["prompt_tokens"] == 3
    assert report["finish_reason"] == ("stop" if expected[-1] == 2 else "length")
    assert report["text"] == byte_tokenizer.decode(expected)
    assert report["seconds"] == pytest.approx(report["seconds_prefill"] + report["seconds_decode"])
    decoded = report["new_tokens"] - 1
    assert report["tokens_per_second"] == pytest.approx(decoded / report["seconds_decode"])


def test_text_is_streamed(cli, compiled_folder, byte_tokenizer):
    options = ("--prompt", "the License", "--max-new-tokens", "20")
    report = json.loads(cli("generate", compiled_folder, *options, "--json").out)
    assert report["prompt_token_ids"] == byte_tokenizer.encode("the License").ids
    done = cli("generate", compiled_folder, *options)
    assert done.code == 0 and done.out == report["text"] + "\n"
    assert done.err.startswith(f"{report['new_tokens']} tokens, ") and "tokens/s" in done.err
    assert f"finished: {report['finish_reason']}" in done.err and done.err.count("\n") == 1


def test_ids_are_streamed_without_a_tokenizer(cli, bare_folder):
    options = ("--token-ids", "7,8", "--max-new-tokens", "5")
    report = json.loads(cli("generate", bare_folder, *options, "--json").out)
    assert report["text"] is None
    assert cli("generate", bare_folder, *options).out == ",".join(map(str, report["token_ids"])) + "\n"


def test_prompt_without_a_tokenizer(cli, bare_folder):
    done = cli("generate", bare_folder, "--prompt", "hello", "--json")
    assert done.code == 2 and done.out == ""
    assert "no tokenizer.json" in done.err and "--token-ids" in done.err and done.err.count("\n") == 1


def test_sampling_repeats_with_a_seed(cli, compiled_folder):
    def run(*more):
        options = ("--token-ids", "9", "--max-new-tokens", "12", "--temperature", "5", "--top-p", "0.9")
        return json.loads(cli("generate", compiled_folder, *options, *more, "--json").out)["token_ids"]

    assert run("--seed", "1") == run("--seed", "1")
    assert len({tuple(run("--seed", str(seed))) for seed in range(5)}) > 1


def test_the_context_ends_the_text(cli, compiled_folder):
    options = ("--token-ids", ",".join(["5"] * 60), "--max-new-tokens", "50", "--json")
    report = json.loads(cli("generate", compiled_folder, *options).out)
    assert report["finish_reason"] in ("context", "stop") and report["new_tokens"] <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither of --prompt and --token-ids"),
        (("--prompt", "a", "--token-ids", "1"), "both of --prompt and --token-ids"),
        (("--token-ids", "1,x"), "found 'x'"),
        (("--token-ids", "512"), "found 512"),
        (("--token-ids", ",".join(["1"] * 65)), "at most 64"),
        (("--token-ids", "1", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("--token-ids", "1", "--temperature", "-1"), "temperature is -1"),
        (("--token-ids", "1", "--temperature", "nan"), "temperature is nan"),
        (("--token-ids", "1", "--top-p", "0"), "top_p is 0"),
        (("--token-ids", "1", "--seed", "-1"), "seed is -1"),
        (("--prompt", ""), "expected at least one integer"),
    ],
)
def test_user_errors(cli, compiled_folder, options, message):
    done = cli("generate", compiled_folder, *options)
    assert done.code == 2 and done.out == "" and message in done.err and done.err.count("\n") == 1


def test_not_a_compiled_folder(cli, nvfp4_folder):
    done = cli("generate", nvfp4_folder, "--token-ids", "1")
    assert done.code == 2 and "nvfp4_tvm.json" in done.err and "compile" in done.err


def test_a_terminal_without_unicode(monkeypatch, capsys):
    import io
    import sys

    from nvfp4_tvm.cli.generate import _write

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    _write("a😀b")
    assert stream.buffer.getvalue() == b"a?b"


@pytest.mark.parametrize("text", ["", ",", "1,,2", "-1", "1.5", "²", "1 2", "0x1"])
def test_parse_token_ids_refuses(text):
    with pytest.raises(NVFP4Error, match="expected numbers such as 1,2,3"):
        parse_token_ids(text)


def test_parse_token_ids():
    assert parse_token_ids("1, 22 ,333") == [1, 22, 333]
