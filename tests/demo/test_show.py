"""What the demo prints."""

from __future__ import annotations

import io

import pytest

from sandboxd.demo import http1, show, tour
from sandboxd.demo.client import Request


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(stream: io.StringIO, environment: dict[str, str], coloured: bool) -> None:
    """Never in a file, never with NO_COLOR."""
    show.Screen(stream, environment).line("text", "red")

    assert ("\x1b[" in stream.getvalue()) is coloured


def test_a_check_that_fails_is_plain_to_see() -> None:
    """Without colour as well."""
    stream = io.StringIO()
    show.Screen(stream, {}).check(tour.Check("The sky is blue.", lambda _: False), holds=False)

    assert stream.getvalue() == "   NOT SO  The sky is blue.\n"


def test_the_curl_command_is_the_request() -> None:
    """Quoted for a shell."""
    stop = tour.Stop("t", Request("POST", "/t/", (("x-a", "b c"),), b"it's"), ())

    assert stop.curl(80) == """curl -i -H 'x-a: b c' -d 'it'"'"'s' http://127.0.0.1:80/t/"""


def test_checks_fail_on_an_empty_answer() -> None:
    """No check of the tour holds by itself, but the ones that state an absence."""
    nothing = tour.Exchange(http1.Message("HTTP/1.1 500 Oops", (), b""), None)
    holding = [check.sentence for stop in tour.STOPS for check in stop.checks if check.holds(nothing)]

    assert holding == ["Nothing of the request reached the upstream."]
