"""What holds for all tests, set before anything else is imported."""

from __future__ import annotations

import os

# Tests fork children that must have one thread. gRPC would start its own threads anew in each of them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
