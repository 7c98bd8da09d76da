"""
An ext_proc server that answers at once and changes nothing: what gRPC in Python costs by itself.

    python -m tests.support.noop_ext_proc SOCKET
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as pb_grpc

ANSWERS = {
    "request_headers": pb.ProcessingResponse(request_headers=pb.HeadersResponse()),
    "request_body": pb.ProcessingResponse(request_body=pb.BodyResponse()),
    "request_trailers": pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
    "response_headers": pb.ProcessingResponse(response_headers=pb.HeadersResponse()),
    "response_body": pb.ProcessingResponse(response_body=pb.BodyResponse()),
    "response_trailers": pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
}


class NoOp(pb_grpc.ExternalProcessorServicer):
    """Answers every event with "go on"."""

    async def Process(self, _requests: Any, context: Any) -> None:  # noqa: N802 - the service's own name
        """Answer until the proxy ends the stream. Reading by hand is quicker than an async generator."""
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(ANSWERS[request.WhichOneof("request")])


async def serve(path: str) -> None:
    """Serve on a Unix socket until SIGTERM."""
    server = grpc.aio.server()
    pb_grpc.add_ExternalProcessorServicer_to_server(NoOp(), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=1)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
