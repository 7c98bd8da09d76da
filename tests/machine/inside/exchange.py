"""One request to the service as Envoy makes it: a stream of ``ext_proc`` on a front's socket."""

from __future__ import annotations

from pathlib import Path

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
HEADERS = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "proof"}


def request(tenant: str, timeout_s: float = 100, directory: str = "/run/sandboxd") -> ext_proc.ProcessingResponse:
    """Send request headers through a tenant's plugin; return the answer. Raises grpc.RpcError."""
    found = sorted(Path(directory).glob("front-*.sock"))
    assert found, f"{directory} holds no front's socket"
    pairs = [base_pb2.HeaderValue(key=key, raw_value=value.encode()) for key, value in HEADERS.items()]
    message = ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(headers=base_pb2.HeaderMap(headers=pairs), end_of_stream=True)
    )
    metadata = (("x-sandboxd-tenant", tenant), ("x-sandboxd-plugin", "filter"))
    with grpc.insecure_channel(f"unix:{found[0]}") as channel:
        call = channel.stream_stream(
            METHOD,
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )
        answers = list(call(iter([message]), metadata=metadata, timeout=timeout_s))
    assert answers, "the stream ended without an answer"
    return answers[0]


def refusal(tenant: str) -> grpc.StatusCode | None:
    """Return the status with which a stream is refused; None if it is not."""
    try:
        request(tenant)
    except grpc.RpcError as error:
        return error.code()
    return None


def headers_set(answer: ext_proc.ProcessingResponse) -> dict[str, str]:
    """Return the headers that an answer sets."""
    mutation = answer.request_headers.response.header_mutation
    return {o.header.key: (o.header.raw_value or o.header.value.encode()).decode() for o in mutation.set_headers}


def failure_status(answer: ext_proc.ProcessingResponse) -> int:
    """Return the HTTP status of an immediate response; 0 if it is none."""
    return int(answer.immediate_response.status.code) if answer.HasField("immediate_response") else 0


def check_calm() -> None:
    """The calm tenant's filter does its work."""
    found = headers_set(request("calm"))
    assert found.get("x-wasm-processed") == "Yes", found
