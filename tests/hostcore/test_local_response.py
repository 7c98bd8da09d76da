"""proxy_send_local_response: what the plugin sees of its own answer, and what the client gets."""

from __future__ import annotations

import pytest

from sandboxd.channel.completions import LocalResponse, parse_local_response
from sandboxd.policy.model import WritePolicy
from sandboxd.policy.write_rules import WriteRules
from tests.hostcore.driver import (
    CLOSE_STREAM,
    LOCAL_RESPONSE,
    OK,
    REQUEST_BODY,
    REQUEST_HEADERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    STREAM_OVER,
    Driver,
    Outcome,
    encode_pairs,
)
from tests.hostcore.guest_wat import OUT, guest

SEND = "proxy_send_local_response"
HEADERS = encode_pairs([(b"X-Why", b"because"), (b"x-why", b"again")])
ANSWER = (SEND, 403, "denied by me", "no entry", HEADERS, 0xFFFF_FFFF)
CALLBACKS = {
    "response_headers": [
        ("proxy_get_header_map_pairs", 2, OUT),
        ("proxy_add_header_map_value", 2, "x-seen", "1"),
    ],
    "response_body": [
        ("proxy_get_buffer_bytes", 1, 0, 0x7FFF_FFFF, OUT),
        ("proxy_set_buffer_bytes", 1, 99, 0, "!"),
    ],
}


def answer(outcome: Outcome) -> LocalResponse:
    """The local response of an event."""
    return parse_local_response(outcome.one(LOCAL_RESPONSE).payload)


def test_the_plugin_sees_and_changes_its_own_answer() -> None:
    """As in Envoy: status, length, type, then the added headers; then the body."""
    with Driver(guest({"request_headers": [ANSWER], **CALLBACKS})) as vm:
        stream, outcome = vm.request(end=False)
        later = vm.event(REQUEST_BODY, stream, b"x")

    generated = [
        (b":status", b"403"),
        (b"content-length", b"8"),
        (b"content-type", b"text/plain"),
        (b"x-why", b"because"),
        (b"x-why", b"again"),
    ]
    assert outcome.kinds == [LOCAL_RESPONSE]
    assert outcome.reports == [b"\0", b"\0" + encode_pairs(generated), b"\0", b"\0no entry", b"\0"]
    sent = answer(outcome)
    assert (sent.status, sent.grpc_status, sent.details, sent.body) == (
        403,
        -1,
        b"denied by me",
        b"no entry!",
    )
    assert sent.headers == [*generated[1:], (b"x-seen", b"1")]
    assert not sent.already_begun
    assert (outcome.code, outcome.state, later.code) == (OK, 0, STREAM_OVER)


def test_without_a_body() -> None:
    """No length, no type, no body callback."""
    with Driver(guest({"request_headers": [(SEND, 204, "", "", "", 7)], **CALLBACKS})) as vm:
        _, outcome = vm.request()

    assert outcome.reports[1] == b"\0" + encode_pairs([(b":status", b"204")])
    assert len(outcome.reports) == 3
    sent = answer(outcome)
    assert (sent.status, sent.grpc_status, sent.body, sent.headers) == (204, 7, b"", [(b"x-seen", b"1")])


def test_the_plugin_may_change_the_status() -> None:
    """What the client gets is the status after the callbacks; nonsense leaves it as it was."""
    for status, expected in ((b"418", 418), (b"zzz", 403), (b"99999", 403)):
        change = [("proxy_replace_header_map_value", 2, ":status", status)]
        with Driver(guest({"request_headers": [ANSWER], "response_headers": change})) as vm:
            _, outcome = vm.request()
        assert answer(outcome).status == expected


def test_an_own_content_type_is_kept() -> None:
    """text/plain is only the default."""
    headers = encode_pairs([(b"Content-Type", b"text/html"), (b":status", b"200"), (b"content-length", b"99")])
    with Driver(guest({"request_headers": [(SEND, 401, "", "<p>", headers, 0xFFFF_FFFF)]})) as vm:
        _, outcome = vm.request()

    assert answer(outcome).headers == [(b"content-length", b"3"), (b"content-type", b"text/html")]
    assert answer(outcome).status == 401


def test_only_the_first_counts() -> None:
    """The others are OK for the guest, and a note."""
    with Driver(guest({"request_headers": [ANSWER, (SEND, 500, "", "", "", 0)]})) as vm:
        _, outcome = vm.request()

    assert answer(outcome).status == 403
    assert (outcome.kinds, outcome.notes, outcome.reports) == ([LOCAL_RESPONSE], [1], [b"\0", b"\0"])


def test_the_callbacks_own_result_is_overridden() -> None:
    """Continue does not let the request go on."""
    with Driver(guest({"request_body": (0, [ANSWER])})) as vm:
        stream, _ = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, b"secret")

    assert outcome.kinds == [LOCAL_RESPONSE]


def test_from_response_headers_it_is_sent_directly() -> None:
    """The response had begun to be processed: no callbacks on the answer."""
    with Driver(guest({"response_headers": [ANSWER], "response_body": CALLBACKS["response_body"]})) as vm:
        stream, _ = vm.request()
        outcome = vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        later = vm.event(RESPONSE_BODY, stream, b"x")

    assert outcome.reports == [b"\0"]
    assert answer(outcome).already_begun
    assert (answer(outcome).status, answer(outcome).body) == (403, b"no entry")
    assert later.code == STREAM_OVER


def test_after_the_response_went_it_resets() -> None:
    """A note, and CLOSE_STREAM as Envoy resets."""
    with Driver(guest({"response_body": [ANSWER]})) as vm:
        stream, _ = vm.request()
        vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        outcome = vm.event(RESPONSE_BODY, stream, b"x")

    assert (outcome.kinds, outcome.notes) == ([CLOSE_STREAM], [2])


def test_a_paused_answer_waits() -> None:
    """A pause in the plugin's own response callback holds its answer until it is resumed."""
    callbacks = {
        "request_headers": [("proxy_get_header_map_value", 0, "x-answer", OUT)],
        "request_body": [ANSWER],
        "response_headers": (1, []),
        "request_trailers": [("proxy_set_effective_context", 2), ("proxy_continue_stream", 1)],
    }
    with Driver(guest(callbacks)) as vm:
        waiting, _ = vm.request(end=False)
        held = vm.event(REQUEST_BODY, waiting, b"x")
        other, _ = vm.request(end=False)
        resumed = vm.event(4, other, encode_pairs([]))

    assert (held.kinds, held.state & 0b1010) == ([], 0b1010)
    assert resumed.one(LOCAL_RESPONSE).stream_id == waiting
    assert answer(resumed).body == b"no entry"


def test_an_answer_for_another_stream() -> None:
    """Through the effective context; the effect names the other stream."""
    callbacks = {
        "request_headers": (1, []),
        "response_headers": [("proxy_set_effective_context", 2), ANSWER],
    }
    with Driver(guest({**callbacks, "request_trailers": []})) as vm:
        waiting, _ = vm.request()
        other, _ = vm.request()
        outcome = vm.headers(other, kind=RESPONSE_HEADERS)

    assert outcome.one(LOCAL_RESPONSE).stream_id == waiting
    assert outcome.kinds[0] == RESPONSE_HEADERS
    assert REQUEST_HEADERS not in outcome.kinds


@pytest.mark.parametrize(
    "call",
    [
        (SEND, 99, "", "", "", 0),
        (SEND, 1000, "", "", "", 0),
        (SEND, 200, "", b"x" * 2001, "", 0),
        (SEND, 200, "", "", b"\1\0\0\0", 0),
    ],
)
def test_bad_arguments(call: tuple[object, ...]) -> None:
    """Refused, and nothing is answered: the request goes on."""
    with Driver(guest({"request_headers": [call]}), limits={"local_response_bytes": 2000}) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\2"]
    assert outcome.kinds == [REQUEST_HEADERS]


def test_headers_do_not_count_against_the_body() -> None:
    """The limit is the body's: one that just fits may come with headers."""
    call = (SEND, 403, "", b"x" * 2000, encode_pairs([(b"x-why", b"w" * 100)]), 0)
    with Driver(guest({"request_headers": [call]}), limits={"local_response_bytes": 2000}) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\0"]
    assert LOCAL_RESPONSE in outcome.kinds


def test_what_is_answered_to_a_body_over_its_limit_leaves_whatever_the_policy_says() -> None:
    """The trusted side knows both answers, and has nothing to refuse of them."""
    limits = {"body_buffer_bytes": 10}
    with Driver(guest({"request_body": (1, [])}), limits=limits) as vm:
        stream, _ = vm.request(end=False)
        request = answer(vm.event(REQUEST_BODY, stream, b"a" * 11))
    with Driver(guest({"response_headers": (1, [])}), limits=limits) as vm:
        stream, _ = vm.request()
        vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        response = answer(vm.event(RESPONSE_BODY, stream, b"a" * 11))

    for made, status in ((request, 413), (response, 500)):
        said = (made.status, made.details, made.headers, made.body, made.grpc_status)
        assert made.status == status
        free, none = WriteRules(WritePolicy()), WriteRules(WritePolicy(local_response=False))
        assert none.local_response(*said) == free.local_response(*said)
        assert none.local_response(*said)[1] == []


def test_without_a_stream_nothing_happens() -> None:
    """OK and no effect, as in Envoy."""
    with Driver(guest({"configure": [ANSWER]})) as vm:
        assert [record.payload for record in vm.start_records if record.kind == 12] == [b"\0"]
