"""Running MLC-LLM's engine, which is C++.

`MLC_LIBRARY_PATH` names the folder of libmlc_llm_module.so, as for MLC-LLM itself; `mlc_llm_model` says where its
Python is.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlc_llm_model

LIBRARY = "libmlc_llm_module.so"
#: The shim leaves the engine's library out unless told otherwise.
_LOADED = {"SKIP_LOADING_MLCLLM_SO": "0"}


def missing() -> str | None:
    """Return why the engine cannot be run here, None if it can."""
    folder = os.environ.get("MLC_LIBRARY_PATH")
    if why := mlc_llm_model.missing():
        return why
    if not folder:
        return f"MLC_LIBRARY_PATH does not name the folder of {LIBRARY}"
    return None if (Path(folder) / LIBRARY).is_file() else f"MLC_LIBRARY_PATH: no {LIBRARY} in {folder}"


def start(*arguments, env=None, **keywords):
    """Start a subcommand of MLC-LLM that runs the engine: a `subprocess.Popen`."""
    command, environment = mlc_llm_model.command_line()
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment | _LOADED | (env or {}), **keywords
    )


class Server:
    """A server that answers at a port of this machine."""

    def __init__(self, port: int, model: str) -> None:
        self.port, self.model = port, model

    def post(self, path: str, **body) -> dict:
        """Return the answer to a request of OpenAI's protocol."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/{path}",
            json.dumps({"model": self.model, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serve(out, *options, log, device="cpu", env=None, seconds=300):
    """Run ``mlc_llm serve`` on a folder within the context; what it prints goes to the file ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "w") as file:
        process = start(
            "serve", out, "--device", device, "--port", port, *options,
            env=env, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait(process, port, time.monotonic() + seconds, log)
            yield Server(port, str(out))
        finally:
            process.kill()
            process.wait()


def _wait(process, port, deadline, log):
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            ended, late = process.poll() is not None, time.monotonic() > deadline
        if ended or late:
            raise RuntimeError(
                f"mlc_llm serve {'ended' if ended else 'does not answer'}:\n{Path(log).read_text()}"
            )
        time.sleep(0.2)
