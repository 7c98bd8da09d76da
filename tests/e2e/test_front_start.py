"""A front that has just begun to listen: nobody hears of an unknown plugin that is about to run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.demo import daemon
from tests.support import guests, stage
from tests.support.front_rig import request_headers

pytestmark = pytest.mark.timeout(120)

METADATA = (("x-sandboxd-tenant", "tenant"), ("x-sandboxd-plugin", guests.C_ADD_HEADER.name))


def first_answer(socket: Path) -> str:
    """What the first stream after the socket's appearance gets: a kind of reply, or the status of a refusal."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        method = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        try:
            for reply in method(iter([request_headers(eos=True)]), metadata=METADATA, timeout=40):
                return str(reply.WhichOneof("response"))
        except grpc.RpcError as error:
            return str(error)
    return "nothing"


def test_the_first_stream_waits_for_its_vm(tmp_path: Path) -> None:
    """At the daemon's start, where the VM comes long after the socket, and after a front was killed."""
    policies = tmp_path / "policies"
    policies.mkdir()
    # Twelve plugins, so that the one asked for is not there at once.
    more = [{**guests.C_ADD_HEADER.plugin(), "name": f"more-{n}"} for n in range(11)]
    patient = guests.C_ADD_HEADER.plugin(limits={"time_per_event": "30s"})
    stage.Tenant("tenant", [*more, patient]).write(policies)
    sandbox = daemon.Daemon(policies, tmp_path)
    socket = sandbox.sockets[0]
    try:
        stage.eventually(socket.exists, "the front listens", timeout_s=60)
        assert first_answer(socket) == "request_headers"
        sandbox.wait_ready()

        for _ in range(3):
            (front,) = sandbox.status()["fronts"]
            socket.unlink()
            os.kill(front["pid"], signal.SIGKILL)
            stage.eventually(socket.exists, "the next front listens")
            assert first_answer(socket) == "request_headers"
            time.sleep(0.2)
    finally:
        assert sandbox.stop() == 0
