"""Local files as FFmpeg reads them through Python."""

import errno
import io
import os
from typing import Any


class LocalFile(io.FileIO):
    """A file that tells its `call` (`decode.Call`) of the error that ends it: FFmpeg takes that for the end of a file which was cut.

    So does what comes too slowly for its patience, which every answer renews: FFmpeg would go on for as long as anything comes.
    """

    def __init__(self, path: str, call: Any, /) -> None:
        super().__init__(path)
        self.call = call

    def read(self, size: int = -1, /) -> bytes:
        if not self.call.failed and self.call.patience.over:
            self.call.failed = self.call.late()
        if self.call.failed:  # FFmpeg asks again, which is no answer of whoever delivers
            return b""
        try:
            data = os.read(self.fileno(), size)
            self.call.patience.renew()
            return data
        except OSError as error:
            self.call.failed = self.call.error("open", error)
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the beginning: FFmpeg asks for the last byte of an empty file to learn its size
                self.call.failed = self.call.error("seek", error)
            return -1
