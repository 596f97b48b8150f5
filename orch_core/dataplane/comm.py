"""A strategy's coroutine for one shard and bucket, and what it may do."""

import hashlib
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal

import torch
from torch import Tensor

from orch_core.contracts.errors import StrategyError
from orch_core.contracts.ids import Shard, Step
from orch_core.contracts.sync import Comm
from orch_core.dataplane.rounds import Operation

Scope = Literal["shard", "job"]


class Request:
    """What a coroutine waits for: one round."""

    def __init__(self, operation: Operation, given: Tensor) -> None:
        self.operation = operation
        self.given = given
        self.value = given.detach()

    def __await__(self) -> Generator["Request", Tensor, Tensor]:
        return (yield self)


class ShardComm(Comm[Tensor]):
    """Contributions go out by `await`, state changes wait in `staged` until the step is applied."""

    def __init__(
        self,
        *,
        step: Step,
        shard: Shard,
        shards: int,
        seed: int,
        bucket: int,
        read: Callable[[str, Shard | None, int, Tensor | None], Tensor],
    ) -> None:
        self.step = step
        self.shard = shard
        self.shards = shards
        self.staged: dict[tuple[str, Scope], Tensor] = {}
        self._seed = seed
        self._bucket = bucket
        self._read = read
        self._generators: dict[str, torch.Generator] = {}

    async def sum(self, value: Tensor) -> Tensor:
        return await self._round("sum", value)

    async def mean(self, value: Tensor) -> Tensor:
        return await self._round("mean", value)

    def state(self, name: str, *, like: Tensor | None = None, scope: Scope = "shard") -> Tensor:
        return self._read(name, self.shard if scope == "shard" else None, self._bucket, like)

    def stage(self, name: str, value: Tensor, *, scope: Scope = "shard") -> None:
        self.staged[name, scope] = value.detach()

    def rng(self, scope: Literal["shard", "step"]) -> torch.Generator:
        if scope not in self._generators:
            who = str(self.shard) if scope == "shard" else "step"
            self._generators[scope] = generator(f"orch/1/sync/{self._seed}/{self.step}/{self._bucket}/{who}")
        return self._generators[scope]

    async def _round(self, name: Literal["sum", "mean"], value: Tensor) -> Tensor:
        if getattr(value, "layout", None) != torch.strided:
            raise StrategyError(f"comm.{name} takes a dense tensor, not {type(value).__name__}")
        return await Request(Operation(name, value.dtype, tuple(value.shape)), value)


def generator(text: str) -> torch.Generator:
    """A torch generator seeded from the first 8 bytes of `text`'s SHA-256."""
    made = torch.Generator()
    made.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return made


class Run:
    """One coroutine. It is at its next round's request, or through."""

    def __init__(self, strategy: str, bucket: int, comm: ShardComm, coroutine: Coroutine[Any, Any, Tensor]) -> None:
        self.comm = comm
        self.rounds = 0  # requests made
        self.result: Tensor | None = None
        self._strategy = strategy
        self._bucket = bucket
        self._coroutine = coroutine
        self._untouchable: list[tuple[weakref.ref[Tensor], int]] = []  # with the versions that they must keep

    @property
    def where(self) -> str:
        """For messages."""
        return f"strategy {self._strategy}, bucket {self._bucket}, shard {self.comm.shard}, step {self.comm.step}"

    def advance(self, result: Tensor | None) -> Request | None:
        """Go on with a round's result (None at first): the next request, or None when it has returned."""
        if result is not None:
            self.protect(result)
        alive = [(tensor, version) for ref, version in self._untouchable if (tensor := ref()) is not None]
        request = self._go_on(result)
        if any(tensor._version != version for tensor, version in alive):
            raise StrategyError(
                f"{self.where}: it changed, in place, what it had contributed or a round's result; a death makes both "
                f"necessary again: copy first"
            )
        if request is not None:
            self.rounds += 1
        return request

    def close(self) -> None:
        """Give it up where it stands."""
        self._coroutine.close()

    def protect(self, tensor: Tensor) -> None:
        """From now on the coroutine must not change it."""
        self._untouchable.append((weakref.ref(tensor), tensor._version))

    def _go_on(self, result: Tensor | None) -> Request | None:
        try:
            request = self._coroutine.send(result)
        except StopIteration as end:
            if not isinstance(end.value, Tensor):
                raise StrategyError(f"{self.where}: it returned {type(end.value).__name__}, not a tensor") from None
            self.result = end.value.detach() if end.value.requires_grad else end.value
            return None
        except StrategyError as error:
            raise StrategyError(f"{self.where}: {error}") from error
        except Exception as error:  # a plugin's code: whatever it raises is its error
            raise StrategyError(f"{self.where}: {type(error).__name__}: {error}") from error
        if not isinstance(request, Request):
            raise StrategyError(f"{self.where}: it may await nothing but its comm's rounds")
        return request
