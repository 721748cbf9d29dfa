"""The three square crops of a frame that fine-tuned models are tested on."""

import dataclasses

import numpy as np

from videomae_jax.data import transforms
from videomae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ThreeCrop:
    """View `view` of `views` squares along the long side: first, middle and last of the frame resized to a short side of `size`.

    View j begins at int(j * (long - size) / (views - 1)); a single view is the first. V2's test views (datasets.py), which
    resize without `antialias` (OpenCV).
    """

    views: int = 3
    view: int = 0
    antialias: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.view < self.views:
            raise UserError(f"ThreeCrop: view {self.view} of {self.views}; allowed are 0 to {self.views - 1}")

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]; `rng` is not used."""
        return np.ascontiguousarray(self._placed(video, size=size)[self.view])

    def every(self, video: np.ndarray, /, *, size: int) -> np.ndarray:
        """All views, u8 [T H W 3] -> u8 [views T size size 3], of frames that are resized once."""
        return np.stack(self._placed(video, size=size))

    def _placed(self, video: np.ndarray, /, *, size: int) -> list[np.ndarray]:
        frames = transforms.whole(video, size=size, antialias=self.antialias)
        places = [[int(view * (side - size) / max(self.views - 1, 1)) for side in frames.shape[2:0:-1]] for view in range(self.views)]
        return [frames[:, top: top + size, left: left + size] for left, top in places]
