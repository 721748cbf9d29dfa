"""The table of `tests/conformance.py`: a row of it, and that a decoder with a fault does not pass."""

import json
import pathlib
from typing import Any

import conformance
import numpy as np
import pytest

from videomae_jax.data import decode


def test_a_row_and_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Every mode that the container and the codec have, every frame right."""
    assert conformance.main(["--only=mp4/mpeg4"]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["container/codec", *conformance.MODES]
    assert row.split() == ["mp4/mpeg4", "72/72", "72/72", "72/72", "none", "none", "72/72", "72/72"]
    assert json.loads(last) == {"files": 5, "frames": 360, "wrong": 0, "refused": 0, "expected_refusals": 0}


@pytest.mark.parametrize("fault", ["neighbour", "level", "rotation", "error"])
def test_a_fault_is_counted(fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A frame too late, a grey level, a picture upside down and a file that is refused: exit code 1."""
    plain = decode.decode

    def faulty(source: Any, ids: Any, /, *, info: decode.VideoInfo) -> np.ndarray:
        if fault == "error":
            raise decode.DecodeError("a", "seek", "why")
        ids = np.minimum(np.asarray(ids) + (fault == "neighbour") * (len(ids) < 9), info.frames - 1)
        video = plain(source, ids, info=info).copy()
        video[0] += np.uint8(fault == "level")
        return np.rot90(video, 2, (1, 2)) if fault == "rotation" else video

    monkeypatch.setattr(decode, "decode", faulty)
    assert conformance.main(["--only=avi/mjpeg"]) == 1
    _, row, last = capsys.readouterr().out.splitlines()
    assert "72/72" not in row and json.loads(last)["wrong"] >= 3 * 15 and ("seek" in row) == (fault == "error")


def test_pictures_that_spell_another_number_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Decoder and reference may agree about the wrong picture."""
    case, bars = conformance.Case("mp4", "mpeg4", "plain"), conformance.bars
    monkeypatch.setattr(conformance, "bars", lambda number, **size: bars(number ^ (number == 7), **size))
    conformance.make(case, tmp_path / "a.mp4")
    assert conformance.wrong(tmp_path / "a.mp4", rotation=0, spelling=True) == (conformance.FRAMES, 1)


def test_damaged_files_must_be_refused(real_videos: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file that is read without complaint is an error of the decoder."""
    monkeypatch.setattr(conformance, "REAL", ("rotated_90.mov",))
    monkeypatch.setattr(conformance, "table", lambda only: {"files": 0, "frames": 0, "wrong": 0})
    assert conformance.main([f"--videos={real_videos}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"files": 1, "frames": 3, "wrong": 0, "refused": 2, "expected_refusals": 2}
    monkeypatch.setattr(conformance, "refusal", lambda path: "")
    assert conformance.main([f"--videos={real_videos}"]) == 1


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """A row that there is not."""
    with pytest.raises(SystemExit):
        conformance.main(["--only=mp4/vp7"])
    assert "allowed are mp4/h264, mp4/hevc" in capsys.readouterr().err
