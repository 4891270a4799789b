"""Fetches shards of other machines while the ones before them are read."""

import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ldm.data.errors import DataError
from ldm.data.sources import Source, is_remote

_THREADS = 4


class Ahead:
    """A few threads a process, started when they are first needed. What they cannot fetch is left
    to the reading itself, which tries again and tells the error."""

    _process: int  # whose threads they are

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.remote: bool = any(is_remote(source.name) for source in sources)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Threads stay with their process."""
        return {"sources": self.sources, "remote": self.remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def want(self, shards: Sequence[int]) -> None:
        """Returns at once."""
        if self._process != os.getpid():  # a fork copies the record of threads, not the threads
            self._forget()
            self._process = os.getpid()
            for _ in range(_THREADS):
                threading.Thread(target=self._work, args=(self._queue,), daemon=True).start()
        for shard in shards:
            if shard not in self._pending and not self.sources[shard].is_here():
                self._pending.add(shard)
                self._queue.put(shard)

    def _forget(self) -> None:
        self._process = 0
        self._pending: set[int] = set()
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()

    def _work(self, wanted: "queue.SimpleQueue[int]") -> None:
        while True:
            shard = wanted.get()
            with suppress(OSError, DataError):
                self.sources[shard].local()
            self._pending.discard(shard)
