"""When the clients try again, against a real server that misbehaves."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from clients.errors import (
    BadRequestError,
    ClientError,
    InternalServerError,
    QueueFullError,
    ResponseTimeoutError,
    ServerConnectionError,
    StreamInterruptedError,
    UnavailableError,
)
from clients.retries import NO_RETRIES, RetryPolicy, retry_after_s
from support.client_drivers import Connect
from support.scripted_server import (
    DONE,
    Reply,
    answer,
    envelope,
    event,
    event_stream,
    refusal,
    scripted_server,
    text_chunk,
)

GOOD = answer(200, envelope(choices=[{"index": 0, "text": "good"}]))
STREAMED = event_stream(event(text_chunk("good")), DONE)


@pytest.mark.parametrize("status", [408, 429, 503])
def test_what_the_server_did_not_begin_is_tried_again(connect: Connect, status: int) -> None:
    bad = refusal(status)
    with scripted_server(bad, bad, GOOD, bad, STREAMED) as scripted:
        driver = connect(scripted.url)
        assert driver.call("complete", "hello", seed=1).text == "good"
        chunks, _ = driver.stream("stream", "hello")
        assert chunks[0].text == "good"
        assert len(scripted.received) == 5
        assert scripted.received[0].body == scripted.received[2].body


@pytest.mark.parametrize("reply", [Reply(), Reply(ending="reset")], ids=["close", "reset"])
def test_connections_that_break_before_an_answer_are_tried_again(
    connect: Connect, reply: Reply
) -> None:
    with scripted_server(reply, GOOD, reply, STREAMED) as scripted:
        driver = connect(scripted.url)
        assert driver.call("complete", "hello").text == "good"
        assert driver.stream("stream", "hello")[0][0].text == "good"


@pytest.mark.parametrize(
    ("status", "expected"), [(400, BadRequestError), (500, InternalServerError)]
)
def test_other_refusals_are_final(
    connect: Connect, status: int, expected: type[ClientError]
) -> None:
    with scripted_server(refusal(status), GOOD) as scripted:
        with pytest.raises(expected):
            connect(scripted.url).call("complete", "hello")
        assert len(scripted.received) == 1


def test_retries_end(connect: Connect) -> None:
    bad = refusal(429, "queue_full")
    with scripted_server(bad, bad, bad, GOOD) as scripted:
        with pytest.raises(QueueFullError):
            connect(scripted.url).call("complete", "hello")
        assert len(scripted.received) == 3


def test_retries_can_be_turned_off(connect: Connect) -> None:
    with scripted_server(refusal(503, "loading"), GOOD) as scripted:
        with pytest.raises(UnavailableError):
            connect(scripted.url, retry=NO_RETRIES).call("complete", "hello")
        assert len(scripted.received) == 1


def test_retry_after_is_waited_for(connect: Connect) -> None:
    with scripted_server(refusal(429, Retry_After="1"), STREAMED) as scripted:
        connect(scripted.url).stream("stream", "hello")
        first, second = scripted.received
        assert second.at_s - first.at_s >= 1.0


def test_nobody_answers(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        driver = connect(url)
        for method in ("complete", "health", "models"):
            arguments = ["hello"] if method == "complete" else []
            with pytest.raises(ServerConnectionError, match=url):
                driver.call(method, *arguments)
        with pytest.raises(ServerConnectionError, match=url):
            driver.stream("stream", "hello")


def test_a_unix_socket(connect: Connect, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("uds") / "s")
    with scripted_server(GOOD, STREAMED, uds=path):
        driver = connect("http://localhost", uds=path)
        assert driver.call("complete", "hello").text == "good"
        assert driver.stream("stream", "hello")[0][0].text == "good"


BUSY = QueueFullError("busy")


def test_waits_double_up_to_a_limit() -> None:
    policy = RetryPolicy(max_retries=9, initial_delay_s=0.5, max_delay_s=3.0, draw=lambda: 0.0)
    assert [policy.delay_s(n, BUSY) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert policy.delay_s(10, BUSY) is None


def test_chance_shortens_waits_of_our_own_and_lengthens_those_that_were_asked_for() -> None:
    policy = RetryPolicy(jitter=0.5, draw=lambda: 1.0)
    assert policy.delay_s(1, BUSY) == 0.25
    assert policy.delay_s(1, QueueFullError("busy", retry_after_s=4.0)) == 4.25


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    policy = RetryPolicy(max_retry_after_s=5.0)
    assert policy.delay_s(1, QueueFullError("busy", retry_after_s=6.0)) is None


@pytest.mark.parametrize("error", [ResponseTimeoutError("x"), StreamInterruptedError("x")])
def test_what_may_have_begun_is_not_tried_again(error: ClientError) -> None:
    assert RetryPolicy().delay_s(1, error) is None


def test_forms_of_retry_after() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=7), usegmt=True)
    earlier = format_datetime(now - timedelta(seconds=7), usegmt=True)
    values = ["3", " 0 ", later, earlier, "soon", "-1", None]
    assert [retry_after_s(value, now.timestamp) for value in values] == [
        3.0, 0.0, 7.0, 0.0, None, None, None,
    ]  # fmt: skip


def test_policies_that_are_none() -> None:
    for wrong in ({"max_retries": -1}, {"jitter": 1.5}, {"max_delay_s": -1.0}):
        with pytest.raises(ValueError):
            RetryPolicy(**wrong)  # pyright: ignore[reportArgumentType]
