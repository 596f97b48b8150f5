"""The checkpoint storage contract: a tiny object store. What a checkpoint is made of is the core's business."""

from abc import ABC, abstractmethod
from collections.abc import Iterator


class CheckpointStore(ABC):
    """Objects under slash-separated keys. Each operation on one object is atomic and durable when it returns."""

    @abstractmethod
    def put(self, key: str, data: bytes | Iterator[bytes]) -> None:
        """Write or replace an object. An iterator is streamed."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; False if there was. Of several racing writers exactly one gets True."""

    @abstractmethod
    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object. Raises KeyError if there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, in sorted order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
