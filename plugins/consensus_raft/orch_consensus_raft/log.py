"""A replica's log: what is committed, as one snapshot, and the few entries that are not.

A committed entry carries the whole document, so the last one says all that the earlier ones said. The log therefore
folds every entry into the snapshot in the moment it is committed, and its snapshot's index *is* the commit index.
What is left in memory is the tail of uncommitted entries, seldom more than one.
"""

from collections.abc import Sequence

from orch_consensus_raft.messages import Entry, Saved, Snapshot
from orch_core.contracts.consensus import Committed
from orch_core.contracts.ids import Term


class Log:
    """Indices grow from 1. Nothing at or below `base.index` can change."""

    def __init__(self, saved: Saved) -> None:
        self.base: Snapshot = saved.snapshot
        self._tail: list[Entry] = list(saved.entries)
        self.commit(min(saved.state.commit, self.last_index))

    @property
    def last_index(self) -> int:
        return self.base.index + len(self._tail)

    @property
    def last_term(self) -> Term:
        return self._tail[-1].term if self._tail else self.base.term

    @property
    def tail(self) -> tuple[Entry, ...]:
        return tuple(self._tail)

    @property
    def tail_bytes(self) -> int:
        """Documents in the tail, in bytes."""
        return sum(len(entry.document or b"") for entry in self._tail)

    def term_at(self, index: int) -> Term | None:
        """The term of the entry at `index`; None where it is folded away or not there yet."""
        if index == self.base.index:
            return self.base.term
        at = index - self.base.index - 1
        return self._tail[at].term if 0 <= at < len(self._tail) else None

    def behind(self, index: int) -> tuple[Entry, ...]:
        """Entries after `index`, which is not below the snapshot's."""
        return tuple(self._tail[index - self.base.index :])

    def append(self, entry: Entry) -> int:
        """Add one entry and return its index."""
        self._tail.append(entry)
        return self.last_index

    def merge(self, prev_index: int, entries: Sequence[Entry]) -> int | None:
        """Make the log hold `entries` behind `prev_index`; return the first index that changed, None if none did.

        A conflicting entry goes with all that follow it; an equal one keeps them (5.3: a late message must not
        shorten the log). What is folded already is equal by the Leader Completeness Property.
        """
        for index, entry in enumerate(entries, prev_index + 1):
            if index <= self.base.index or self.term_at(index) == entry.term:
                continue
            self.overwrite(index, entries[index - prev_index - 1 :])
            return index
        return None

    def overwrite(self, first: int, entries: Sequence[Entry]) -> None:
        """Drop what stands at `first` and behind it, and put `entries` there."""
        del self._tail[first - self.base.index - 1 :]
        self._tail.extend(entries)

    def install(self, snapshot: Snapshot) -> None:
        """Take a newer snapshot; the tail behind it survives if it belongs to it (7)."""
        if self.term_at(snapshot.index) == snapshot.term:
            del self._tail[: snapshot.index - self.base.index]
        else:
            self._tail.clear()
        self.base = snapshot

    def commit(self, index: int) -> None:
        """Fold all entries up to `index` into the snapshot."""
        document = self.base.document
        for at in range(self.base.index + 1, index + 1):
            entry = self._tail.pop(0)
            if entry.document is not None:
                document = Committed(entry.document, entry.term, at)
            self.base = Snapshot(at, entry.term, document)
