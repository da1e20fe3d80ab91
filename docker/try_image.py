"""Lets an image's server answer, from within; standard library alone, exit code 0 if all is well.

docker run --rm -i --read-only --entrypoint python bitskip-server:cpu - < docker/try_image.py

With buildah: buildah run "$(buildah from bitskip-server:cpu)" -- python - < docker/try_image.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

PORT = os.environ.get("BITSKIP_PORT", "8000")
URL = f"http://127.0.0.1:{PORT}"
PATIENCE_S = 60.0
BODY = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": True}

fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def wait_until_healthy(server: subprocess.Popen[bytes]) -> None:
    """Ask as the health check does, until the answer is 200."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            print("health:", fetch(f"{URL}/health", timeout=4).read().decode())
            return
        except urllib.error.URLError as error:
            if time.monotonic() > deadline or server.poll() is not None:
                sys.exit(f"the server did not become healthy: {error}")
        time.sleep(0.2)


def answer() -> str:
    """The text of a streamed completion, which must end as it should."""
    request = urllib.request.Request(f"{URL}/v1/completions", json.dumps(BODY).encode())
    with fetch(request, timeout=PATIENCE_S) as response:
        frames = [line[6:].decode().strip() for line in response if line.startswith(b"data: ")]
    if frames.pop() != "[DONE]":
        sys.exit("the stream was cut off")
    print("chunks:", len(frames))
    return "".join(json.loads(frame)["choices"][0]["text"] for frame in frames)


def main() -> None:
    """Start the server, ask it, stop it."""
    print("user:  ", os.getuid())
    with subprocess.Popen(["bitskip", "serve"]) as server:
        try:
            wait_until_healthy(server)
            print(f"answer: {BODY['prompt']}{answer()}")
        finally:
            server.terminate()
    print("exit:  ", server.returncode)
    sys.exit(server.returncode)


if __name__ == "__main__":
    main()
