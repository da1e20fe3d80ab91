"""`bitskip complete` and `bitskip chat` as programs, on pipes and on terminals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import live_server, wait_until
from support.scripted_server import (
    DONE,
    Reply,
    ScriptedServer,
    answer,
    envelope,
    event,
    event_stream,
    refusal,
    scripted_server,
    text_chunk,
)
from support.served_process import ROOT, ServedProcess, environment, run_command
from support.terminals import terminal

MODELS = answer(
    200,
    {
        "data": [
            {"id": "m", "created": 1, "max_model_len": 99, "num_layers": 4, "exit_layers": [2, 4]}
        ]
    },
)
METRICS = {
    "exit_layer": 4,
    "time_to_first_token_ms": 3.0,
    "generation_time_ms": 10.0,
    "queue_time_ms": 0.0,
    "mean_itl_ms": 1.0,
    "tokens_per_second": 321.0,
    "seed": 1,
    "speculative_decoding": None,
}
GREEN, YELLOW = "\x1b[32m", "\x1b[33m"


def sourced(*tokens: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"token_id": 1, "text": text, "source": source} for text, source in tokens]


def said(text: str, *, ending: str | None = "stop", **options: Any) -> Reply:
    """A streamed chat answer of one chunk."""
    delta = {"role": "assistant", "content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": ending}
    return event_stream(
        event(envelope(choices=[choice], metrics=METRICS if ending else None)), DONE, **options
    )


def run(*arguments: str, stdin: str = "", **variables: str) -> Result:
    """`bitskip` in this process, which is quicker, with pipes for everything."""
    return CliRunner().invoke(app, list(arguments), input=stdin, env=variables)


def test_a_pipe_gets_the_text_alone(demo: ServedProcess) -> None:
    options = dict(prompt="Once upon a time", max_tokens=40, temperature=0.5, seed=3)
    expected = demo.complete(**options, exit_layer=9)["choices"][0]["text"]
    done = run_command(
        *("complete", "Once upon a time", "--max-tokens", "40", "--temperature", "0.5"),
        *("--seed", "3", "--exit-layer", "9", "--draft-exit", "3", "--num-speculations", "4"),
        *("--url", demo.url),
    )
    ended = expected if expected.endswith("\n") else expected + "\n"
    assert (done.returncode, done.stdout) == (0, ended)
    closing = done.stderr.strip()
    assert re.fullmatch(
        r"40 tokens, \d+ tok/s, first after \d+ ms, exit 9, \d+% of \d+ drafts by 3 layers accepted"
        r" \(\d+ draft, \d+ corrected, \d+ bonus, \d+ plain\); stopped at the limit of tokens",
        closing,
    ), closing


def test_the_server_may_be_named_by_the_environment_and_the_prompt_come_by_pipe(
    demo: ServedProcess,
) -> None:
    arguments = ("complete", "-", "--max-tokens", "5", "--no-speculative")
    done = run(*arguments, stdin="Once upon a time", BITSKIP_URL=demo.url)
    assert done.exit_code == 0, done.stderr
    assert "exit 12, nothing drafted" in done.stderr


def test_tokens_are_painted_by_source_on_a_terminal(demo: ServedProcess) -> None:
    options = ("--draft-exit", "2", "--num-speculations", "4", "--seed", "3", "--max-tokens", "60")
    with terminal("complete", "Once upon a time", *options, "--url", demo.url) as program:
        assert program.finish() == 0
    assert len(re.findall(re.escape(GREEN) + r" \w+\x1b\[0m", program.screen)) > 5
    assert len(re.findall(re.escape(YELLOW) + r" \w+\x1b\[0m", program.screen)) > 2
    assert "tok/s" in program.screen


def test_what_a_model_says_cannot_command_the_terminal() -> None:
    text = "a\x1b]0;title\x07b\x9bc"
    tokens = sourced((text[:3], "draft"), (text[3:], "plain"))
    stream = event_stream(event(text_chunk(text, "stop", token_sources=tokens)), DONE)
    with (
        scripted_server(stream) as scripted,
        terminal("complete", "x", "--url", scripted.url) as program,
    ):
        assert program.finish() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", program.screen)
    assert shown == "a\ufffd]0;title\ufffdb\ufffdc\r\n"


def test_no_server() -> None:
    for command in (("complete", "x"), ("chat",), ("bench",)):
        done = run(*command, "--url", "http://127.0.0.1:9")
        assert done.exit_code == 1 and not done.stdout
        assert "error: no answer from http://127.0.0.1:9" in done.stderr
        assert "bitskip serve" in done.stderr and "Traceback" not in done.stderr


def test_errors_are_one_line() -> None:
    with scripted_server(refusal(401), refusal(400), refusal(404)) as scripted:
        unknown = run("complete", "x", "--url", scripted.url, BITSKIP_API_KEY="k")
        assert unknown.exit_code == 1 and "--api-key" in unknown.stderr
        assert scripted.received[0].headers["authorization"] == "Bearer k"
        bad = run("complete", "x", "--url", scripted.url)
        assert bad.exit_code == 1 and bad.stderr.strip() == "error: status 400"
        elsewhere = run("complete", "x", "--url", scripted.url)
        assert elsewhere.exit_code == 1 and "status 404 (404)" in elsewhere.stderr
        assert "--url" in elsewhere.stderr


def test_options_that_contradict() -> None:
    done = run("complete", "x", "--no-speculative", "--draft-exit", "3")
    assert done.exit_code == 2 and "--no-speculative" in done.stderr


def test_ctrl_c_stops_a_completion() -> None:
    fake = FakeAsyncEngine(hold_after=5)
    with live_server(fake) as server, terminal("complete", "x", "--url", server.url) as program:
        program.wait_for("ü")
        program.process.send_signal(signal.SIGINT)
        assert program.finish() == 130
        wait_until(lambda: fake.aborted)
    assert "Traceback" not in program.screen


def test_a_reader_that_leaves(demo: ServedProcess) -> None:
    command = f'"{sys.executable}" -m server complete "Once" --url {demo.url} | head -c 3'
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment(), capture_output=True, timeout=60
    )
    assert len(done.stdout) == 3 and b"Traceback" not in done.stderr, done.stderr


def bodies(scripted: ScriptedServer) -> list[Sequence[dict[str, str]]]:
    return [request.body["messages"] for request in scripted.received if request.body]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_conversation_by_pipe() -> None:
    typed = 'one\n\n/reset\ntwo\nthree \\\nfour\n"""\nfive\n\nsix\n"""\n/exit\nnever\n'
    replies = [MODELS, *(said(f"answer {number}") for number in range(4))]
    with scripted_server(*replies) as scripted:
        done = run("chat", "--system", "be kind", "--url", scripted.url, stdin=typed)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "".join(f"answer {number}\n" for number in range(4))
    system = {"role": "system", "content": "be kind"}
    assert bodies(scripted) == [
        [system, user("one")],
        [system, user("two")],
        [system, user("two"), assistant("answer 1"), user("three \nfour")],
        [
            *(system, user("two"), assistant("answer 1")),
            *(user("three \nfour"), assistant("answer 2"), user("five\n\nsix")),
        ],
    ]


def test_a_conversation_with_the_demo(demo: ServedProcess) -> None:
    options = ("--max-tokens", "20", "--temperature", "0", "--draft-exit", "3")
    done = run("chat", *options, "--url", demo.url, stdin="Once upon a time\nAnd then?\n")
    assert done.exit_code == 0, done.stderr
    message = [user("Once upon a time")]
    body = {"messages": message, "max_completion_tokens": 20, "temperature": 0}
    answer = demo.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    message += [answer, user("And then?")]
    second = demo.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    expected = [
        text if text.endswith("\n") else f"{text}\n"
        for text in (answer["content"], second["content"])
    ]
    assert done.stdout == "".join(expected)
    assert done.stderr.count("tok/s") == 2


def test_the_oldest_exchange_makes_room() -> None:
    too_long = refusal(400, "context_length_exceeded")
    with scripted_server(MODELS, said("1"), said("2"), too_long, said("3")) as scripted:
        done = run("chat", "--url", scripted.url, stdin="a\nb\nc\n")
    assert (done.exit_code, done.stdout) == (0, "1\n2\n3\n"), done.stderr
    assert "forgotten" in done.stderr
    assert bodies(scripted)[-1] == [user("b"), assistant("2"), user("c")]


def test_a_message_too_long_on_its_own_ends_a_script() -> None:
    with scripted_server(MODELS, refusal(400, "context_length_exceeded")) as scripted:
        done = run("chat", "--url", scripted.url, stdin="a\n")
    assert done.exit_code == 1 and "error: status 400" in done.stderr


def test_a_conversation_on_a_terminal() -> None:
    gate = threading.Event()
    replies = [
        MODELS,
        refusal(400, "x"),
        said("fine"),
        event_stream(
            event(envelope(choices=[{"index": 0, "delta": {"content": "half"}}])), complete=False
        ),
        said("late", gate=gate),
        said("bye"),
    ]
    with scripted_server(*replies) as scripted, terminal("chat", "--url", scripted.url) as program:
        place = program.wait_for("m: 4 layers, 99 tokens of context")
        place = program.wait_for("> ", place)
        program.type("/help\n")
        place = program.wait_for("forget the conversation", place)
        program.type("/nonsense\n")
        place = program.wait_for("There is no /nonsense", place)
        program.type("one\n")
        place = program.wait_for("error: status 400", place)
        program.type("two\n")
        place = program.wait_for("fine", place)
        place = program.wait_for("321 tok/s", place)
        program.type("three\n")
        place = program.wait_for("broke off", program.wait_for("half", place))
        place = program.wait_for("> ", place)
        program.type("dropped")
        place = program.wait_for("dropped", place)
        place = program.interrupt("> ", place)
        program.type("four\n")
        wait_until(lambda: len(scripted.received) == 5)
        program.type("\x03")  # While the answer is waited for.
        place = program.wait_for("> ", program.wait_for("^C", place))
        gate.set()
        program.type("five\n")
        place = program.wait_for("> ", program.wait_for("bye", place))
        program.type("\x04")
        assert program.finish() == 0
    # What failed is not part of the conversation; what was stopped is, as far as it came.
    assert bodies(scripted)[-1] == [
        *(user("two"), assistant("fine")),
        *(user("four"), assistant(""), user("five")),
    ]


@pytest.mark.parametrize("command", ["complete", "chat", "bench"])
def test_help(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0 and "BITSKIP_URL" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['bitskip', '--help']\n"
        "from server.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print([name for name in ('httpx', 'numpy', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
