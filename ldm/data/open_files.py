"""Bytes out of shards: files opened when they are needed, and tried again when they fail."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ldm.data.errors import DataError
from ldm.data.reading import Reading
from ldm.data.sources import Source

_OPEN_FILES = 64
_Answer = TypeVar("_Answer")


# Offset, size, and where so many bytes go, one buffer behind the other.
Read = tuple[int, int, tuple[memoryview | bytearray, ...]]


class OpenFiles:
    """The files of numbered shards, the last used of them kept open. `sizes` are their bytes by
    their indexes; a file of another size is refused."""

    def __init__(self, sources: Sequence[Source], sizes: Sequence[int], reading: Reading) -> None:
        self.sources = sources
        self.sizes = sizes
        self.reading = reading
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay with their process."""
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """So many bytes of a shard, fewer where it ends. Raises DataError."""
        return self._tried(shard, lambda file: os.pread(file, size, offset))

    def read_into(self, shard: int, reads: Sequence[Read]) -> None:
        """Several parts of one shard, by one call of the system each. Raises DataError."""

        def scatter(file: int) -> None:
            for offset, size, buffers in reads:
                if os.preadv(file, buffers, offset) != size:
                    raise OSError(f"it ends before byte {offset + size}")

        self._tried(shard, scatter)

    def _tried(self, shard: int, function: Callable[[int], _Answer]) -> _Answer:
        """Tries again with growing pauses."""
        for attempt in range(self.reading.retries + 1):
            try:
                return function(self._file(shard))
            except OSError as error:
                self._close(shard)
                reason = error
            if attempt < self.reading.retries:
                time.sleep(0.5 * 2**attempt)
        raise DataError(
            f"shard {self.sources[shard].name} cannot be read ({reason}) after "
            f"{self.reading.retries + 1} tries; bring it back and resume"
        )

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        file = os.open(self.sources[shard].local(), os.O_RDONLY)
        size, wanted = os.fstat(file).st_size, self.sizes[shard]
        if size != wanted and not self.reading.salvage:
            os.close(file)
            raise DataError(
                f"shard {self.sources[shard].name} has {size} bytes and its index says {wanted}; "
                "it was cut or changed: bring the right one back and resume"
            )
        self._files[shard] = file
        while len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _close(self, shard: int) -> None:
        if shard in self._files:
            os.close(self._files.pop(shard))
