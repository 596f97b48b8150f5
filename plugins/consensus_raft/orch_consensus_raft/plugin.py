"""The entry point ``orch.consensus:raft``. Light on purpose: the replica is imported when one is made."""

from orch_core.contracts.consensus import Consensus, ReplicaSpec
from orch_core.hookspecs import hookimpl


@hookimpl
def orch_make_consensus(spec: ReplicaSpec) -> Consensus:
    """One Raft replica for `spec`."""
    from orch_consensus_raft.replica import RaftReplica

    return RaftReplica(spec)
