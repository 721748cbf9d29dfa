"""How long an access to a file may take."""

import time


class Patience:
    """Ends `seconds` after its beginning, or, where `whole` is more, `seconds` after the last `renew`, but at most `whole` seconds after its beginning."""

    def __init__(self, seconds: float, /, *, whole: float = 0.0) -> None:
        begin = time.monotonic()
        self.seconds, self.most, self.end = seconds, max(seconds, whole), begin + seconds
        self._last = begin + self.most

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return time.monotonic() > self.end

    def renew(self) -> None:
        """Called for every answer of whoever delivers."""
        self.end = max(self.end, min(time.monotonic() + self.seconds, self._last))

    def why(self) -> str:
        """The cause of an error after the end."""
        return f"nothing came for {self.seconds:g} s" if time.monotonic() < self._last else f"not done after {self.most:g} s"
