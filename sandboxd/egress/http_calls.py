"""One HTTP callout: from what a plugin asks to what it gets."""

from __future__ import annotations

from sandboxd.channel.pairs import encode
from sandboxd.egress import answers
from sandboxd.egress.budget import BudgetSpentError
from sandboxd.egress.context import Context
from sandboxd.egress.desk import Destination
from sandboxd.egress.http import CallFailedError
from sandboxd.egress.resolve import AddressRefusedError
from sandboxd.egress.rules import DeniedError, HttpRequest, http_request
from sandboxd.protos import control_pb2 as control

_NO_TRAILERS = encode([])


async def http_call(context: Context, call: control.HttpCall) -> control.CalloutReply:
    """Make the call if the policy allows it; never raises but for its cancellation."""
    try:
        found = context.destination(call.upstream)
        request = http_request(found.upstream, call)
        with context.admitted(found):
            context.count(found, "calls")
            context.count(found, "request_bytes", len(request.body))
            return await _send(context, found, request)
    except DeniedError as error:
        return answers.http_failure(context.denied(call.upstream, error))


async def _send(context: Context, found: Destination, request: HttpRequest) -> control.CalloutReply:
    try:
        response = await context.desk.http(context.plugin, found).call(request, context.lease)
    except AddressRefusedError as error:
        raise DeniedError("allow_addresses", str(error)) from None
    except BudgetSpentError as error:
        raise DeniedError("memory", str(error)) from None
    except TimeoutError:
        context.count(found, "failed.timeout")
        return answers.http_overdue()
    except CallFailedError as error:
        context.count(found, f"failed.{error.kind}")
        return answers.http_failed(error.kind, str(error))
    context.count(found, "answered")
    context.count(found, "response_bytes", len(response.body))
    headers = context.visible(found, response.headers)
    return control.CalloutReply(http=control.HttpReply(headers=headers, body=response.body, trailers=_NO_TRAILERS))
