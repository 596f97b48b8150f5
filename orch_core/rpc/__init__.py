"""gRPC stubs, protobuf <-> contracts, and the stream that finds the leader.

gRPC installs fork handlers unless it is told not to before it is first imported. They are wrong here: a worker's data
loader forks beside live streams, and its children never touch gRPC. So this package, through which everything in orch
comes to gRPC, says so first. A script that imports ``grpc`` before ``orch_core`` sets GRPC_ENABLE_FORK_SUPPORT=0
itself; `orch run` sets it for its workers.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
