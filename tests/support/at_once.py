"""Several requests over one HTTP/2 connection in one write: a proxy meets them in one turn of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

READ_BYTES = 65536


@dataclass
class Answer:
    """What came back to a request; ``status`` is 0 if the stream was reset."""

    status: int = 0
    body: bytes = b""
    whole: bool = field(default=False, repr=False)


def _take(answers: dict[int, Answer], event: h2.events.Event) -> None:
    match event:
        case h2.events.ResponseReceived():
            answers[event.stream_id].status = int(dict(event.headers)[b":status"])
        case h2.events.DataReceived():
            answers[event.stream_id].body += event.data
        case h2.events.StreamEnded():
            answers[event.stream_id].whole = True
        case h2.events.StreamReset():
            answers[event.stream_id] = Answer(whole=True)
        case _:
            pass


async def exchange(
    port: int, requests: Sequence[tuple[Sequence[tuple[str, str]], bytes]], timeout_s: float = 10.0
) -> list[Answer]:
    """
    Return the answers to POST requests, each given as its further headers and its body, in the requests' order.

    Raises:
        TimeoutError: they did not all come in time.
        ConnectionError: the proxy closed the connection before.
    """
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    answers: dict[int, Answer] = {}
    pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "at-once"), (":path", "/")]
    for headers, body in requests:
        stream_id = connection.get_next_available_stream_id()
        answers[stream_id] = Answer()
        connection.send_headers(stream_id, [*pseudo, *headers])
        connection.send_data(stream_id, body, end_stream=True)
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not all(answer.whole for answer in answers.values()):
                writer.write(connection.data_to_send())
                await writer.drain()
                received = await reader.read(READ_BYTES)
                if not received:
                    raise ConnectionError("closed before all answers were there")
                for event in connection.receive_data(received):
                    _take(answers, event)
        finally:
            writer.close()
    return list(answers.values())
