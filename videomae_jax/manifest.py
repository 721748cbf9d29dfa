"""A checksum of every file of a checkpoint, written before the checkpoint is committed and compared before it is read.

The storage layer returns flipped bits without an error, and takes a file of another step for its own.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import zlib
from typing import Any, BinaryIO

NAME = "files.json"
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")  # the storage layer writes these when it commits; no value depends on them
THREADS = 4
PART = 1 << 22  # bytes read at once
ALL = (0, float("inf"))  # bytes of any file


def seal(meta: dict[str, Any], /, *, key: str = "sha256") -> dict[str, Any]:
    """`meta` with the digest of everything else in it under `key`."""
    rest = {k: v for k, v in meta.items() if k != key}
    return {**rest, key: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def total(file: BinaryIO, /) -> list[int]:
    """[bytes, CRC-32] of what is left of an open file: any flipped bit and any cut shows, other changes but for one in 2^32."""
    size = value = 0
    while part := file.read(PART):
        size, value = size + len(part), zlib.crc32(part, value)
    return [size, value]


def checksum(path: pathlib.Path, /) -> list[int]:
    """The `total` of a file."""
    with path.open("rb") as file:
        return total(file)


def listed(directory: pathlib.Path, /, *, late: tuple[str, ...] = ()) -> dict[str, pathlib.Path]:
    """{"params/d/..": path} of the files that a manifest covers, sorted, and of those of LATE that are asked for."""
    found = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*")) if p.is_file() or p.is_symlink()}
    return {k: p for k, p in found.items() if k != NAME and (k not in LATE or k in late)}


def write(directory: pathlib.Path, /, *, step: int) -> None:
    """Writes the manifest of a checkpoint of `step` into its directory."""
    files = listed(directory)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        sums = dict(zip(files, pool.map(checksum, files.values()), strict=True))
    (directory / NAME).write_text(json.dumps(seal({"step": step, "files": sums})))


def problem(directory: pathlib.Path, /, *, step: int, part: int = 0, parts: int = 1, sizes: tuple[float, float] = ALL) -> str:
    """What is wrong with the files of a checkpoint of `step`, "" for nothing.

    Of `parts` readers, `part` reads its share of them. All have to be there in their length; those of `sizes` bytes (from, below) are read.
    """
    try:
        found = json.loads((directory / NAME).read_bytes())
        if not isinstance(found, dict) or seal(found) != found:
            return f"{NAME} does not match its own checksum"
        if found["step"] != step:
            return f"its files are of step {found['step']}"
        files, sums = listed(directory), found["files"]
        if files.keys() != sums.keys():
            missing, strange = sorted(sums.keys() - files.keys()), sorted(files.keys() - sums.keys())
            return f"{len(missing)} files are missing and {len(strange)} do not belong to it, first {(missing + strange)[0]}"
        links = [k for k, p in {NAME: directory / NAME, **files}.items() if p.is_symlink()]
        if links:
            return f"{links[0]} is a link, which no save writes"
        cut = [k for k, p in files.items() if p.stat().st_size != sums[k][0]]
        if cut:
            return f"{len(cut)} of {len(sums)} files do not have their length, first {cut[0]}"
        names = [k for k in list(files)[part::parts] if sizes[0] <= sums[k][0] < sizes[1]]
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            wrong = [k for k, got in zip(names, pool.map(lambda k: checksum(files[k]), names), strict=True) if got != sums[k]]
        return f"{len(wrong)} of {len(sums)} files do not match their checksum, first {wrong[0]}" if wrong else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{NAME} or what it lists cannot be read ({type(error).__name__}: {str(error)[:100]})"


def described(items: Any, /) -> bool:
    """Whether metadata list items of leaves with shape, dtype and checksum."""
    nested = isinstance(items, dict) and all(isinstance(leaves, dict) for leaves in items.values())
    return nested and all(isinstance(leaf, dict) and {"shape", "dtype", "checksum"} <= leaf.keys() and isinstance(leaf["shape"], list)
                          for leaves in items.values() for leaf in leaves.values())
