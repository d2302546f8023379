"""``nvfp4-tvm generate``: continue a text with a compiled folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvfp4_tvm.cli.output import Json, Verbose, print_json, stderr
from nvfp4_tvm.errors import NVFP4Error

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def generate_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `nvfp4-tvm compile` wrote.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue; needs tokenizer.json in OUT.")] = None,
    token_ids: Annotated[
        str | None, typer.Option(metavar="IDS", help="Token ids to continue, such as 1,2,3.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Stop after so many.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the most probable tokens that reach this sum.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare the parameters with the checksums in the manifest."),
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Continue a text: it is printed as it comes, token ids where OUT has no tokenizer."""
    given = None if token_ids is None else parse_token_ids(token_ids)
    if (prompt is None) == (given is None):
        raise NVFP4Error(
            f"found {'neither' if given is None else 'both'} of --prompt and --token-ids, expected one"
        )
    if seed is not None and seed < 0:
        raise NVFP4Error(f"seed is {seed}, expected 0 or more")

    from nvfp4_tvm.cli.detokenize import TOKENIZER, load_tokenizer
    from nvfp4_tvm.runtime.folder import Manifest, load

    manifest = Manifest.read(folder)
    tokenizer = load_tokenizer(folder)
    if given is None:
        if tokenizer is None:
            raise NVFP4Error(
                f"{folder}: found no {TOKENIZER}, which --prompt needs; give --token-ids instead"
            )
        given = tokenizer.encode(prompt or "").ids

    start = time.perf_counter()
    runner = load(folder, verify=not no_verify)
    seconds_load = time.perf_counter() - start
    on_token, finish = (_ignore, _nothing) if json else _printer(tokenizer)
    result = runner.generate(
        given,
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_token_ids=manifest.eos_token_ids,
        on_token=on_token,
    )
    finish()
    if json:
        text = (
            None if tokenizer is None else tokenizer.decode(list(result.token_ids), skip_special_tokens=True)
        )
        print_json(
            {
                **asdict(result),
                "text": text,
                "new_tokens": len(result.token_ids),
                "prompt_token_ids": given,
                "seconds_load": seconds_load,
                "seconds": result.seconds_prefill + result.seconds_decode,
                "tokens_per_second": result.tokens_per_second,
            }
        )
        return
    stderr.print(
        f"{len(result.token_ids)} tokens, {result.tokens_per_second:.1f} tokens/s after the first; prompt of "
        f"{result.prompt_tokens} tokens in {result.seconds_prefill:.2f} s; finished: {result.finish_reason}",
        markup=False,
        soft_wrap=True,
    )


def parse_token_ids(text: str) -> list[int]:
    """Read ``1,2,3``.

    Raises
    ------
    NVFP4Error
        If it is anything else.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not (word.isascii() and word.isdigit())]
    if wrong:
        raise NVFP4Error(f"--token-ids: found {wrong[0]!r:.40}, expected numbers such as 1,2,3")
    return [int(word) for word in words]


def _ignore(_token_id: int) -> None:
    pass


def _nothing() -> None:
    pass


def _printer(tokenizer: Tokenizer | None) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return what prints a token on stdout, and what ends the output."""
    if tokenizer is None:
        separator = ""

        def on_id(token_id: int) -> None:
            nonlocal separator
            _write(f"{separator}{token_id}")
            separator = ","

        return on_id, lambda: _write("\n")

    from nvfp4_tvm.cli.detokenize import TextStream

    stream = TextStream(tokenizer)
    return lambda token_id: _write(stream.feed(token_id)), lambda: _write(stream.finish() + "\n")


def _write(text: str) -> None:
    if not text:
        return
    encoding = sys.stdout.encoding or "utf-8"
    # A terminal without UTF-8 shows question marks, rather than the program ending in the middle of a text
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
