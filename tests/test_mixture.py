"""Mixtures: every row once an epoch or every source at its rate, as pure functions of (seed, position), with the parts' own settings."""

import dataclasses
import pathlib
import pickle
from collections import Counter
from typing import Any

import ml_collections
import numpy as np
import pytest
from test_card import run_of
from test_decode import encode, spelt

from videomae_jax import card
from videomae_jax import config as configs
from videomae_jax.config import spec
from videomae_jax.data import clips, index, mixture, pipeline, sources, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source


def noise(length: int, /, **kw: Any) -> sources.NoiseClips:
    """A source of `length` rows."""
    return sources.NoiseClips(frames=2, size=8, length=length, **kw)


def parts(**lengths: int) -> dict[str, mixture.Part]:
    """Equally weighted parts."""
    return {name: mixture.Part(noise(n)) for name, n in lengths.items()}


def weighted() -> mixture.Weighted:
    """Three parts at 5 : 3 : 0.7."""
    return mixture.Weighted({"a": mixture.Part(noise(7), weight=5), "b": mixture.Part(noise(11), weight=3), "c": mixture.Part(noise(3), weight=0.7)})


def rows(source: Any, count: int, /, *, batch_size: int = 6, **options: Any) -> list[int]:
    """Rows that the stream reads."""
    with pipeline.stream(source, batch_size=batch_size, seed=5, **options) as stream:
        return [int(r) for _ in range(count // batch_size) for r in next(stream)["row"]]


# -- concat ------------------------------------------------------------------------------------------------------------


def test_concat_reads_every_row_once_an_epoch() -> None:
    """Two epochs in different orders; rows are named after their part."""
    source = mixture.Concat(parts(small=4, large=14))
    assert len(source) == 18
    first, second = np.reshape(rows(source, 36), (2, 18))
    assert sorted(first) == sorted(second) == list(range(18)) and first.tolist() != second.tolist()
    assert [source.name(r) for r in (0, 13, 14, 17)] == ["large/noise 0", "large/noise 13", "small/noise 0", "small/noise 3"], "parts in the order of names"
    with pipeline.sweep(source, batch_size=9) as sweep:
        assert [r for _ in range(2) for r in next(sweep)["row"]] == list(range(18))


def test_the_order_of_writing_does_not_matter() -> None:
    """A config that went through JSON has its keys sorted."""
    one, other = mixture.Concat(parts(a=4, b=5)), mixture.Concat(parts(b=5, a=4))
    assert [one.name(r) for r in range(9)] == [other.name(r) for r in range(9)]
    assert rows(weighted(), 60) == rows(mixture.Weighted(dict(reversed(weighted().parts.items()))), 60)


def test_limits_keep_all_parts() -> None:
    """Rows at equal distances over all parts."""
    source = mixture.Concat(parts(a=40, b=20), limit=6)
    assert [source.name(r) for r in range(len(source))] == ["a/noise 0", "a/noise 10", "a/noise 20", "a/noise 30", "b/noise 0", "b/noise 10"]
    assert len(mixture.Concat(parts(a=4, b=2), limit=60)) == 6
    with pytest.raises(UserError, match="a limit of 1 leaves nothing of source 'b'"):
        mixture.Weighted(parts(a=4, b=2), limit=1).order(seed=0)


# -- weighted ----------------------------------------------------------------------------------------------------------


def test_floor_sum() -> None:
    """Against the sum itself, also for negative offsets."""
    drawn = np.random.default_rng(0)
    for n, m, a, b in zip(drawn.integers(0, 30, 500), drawn.integers(1, 20, 500), drawn.integers(0, 50, 500), drawn.integers(-60, 60, 500), strict=True):
        assert mixture.floor_sum(int(n), int(m), int(a), int(b)) == sum((int(a) * i + int(b)) // int(m) for i in range(n))


def test_weights_hold_everywhere() -> None:
    """In every stretch of the stream, however far in, the counts are those of the weights to within four draws."""
    order, shares = weighted().order(seed=3), np.array([5, 3, 0.7]) / 8.7
    for begin in (0, 10**12):
        owners = np.array([0 if r < 7 else 1 if r < 18 else 2 for r in (order[begin + i] for i in range(400))])
        for low, high in ((0, 10), (0, 200), (37, 113), (90, 190)):
            counts = np.array([(owners[low:high] == i).sum() for i in range(3)])
            assert np.abs(counts - shares * (high - low)).max() < 4


def test_every_row_of_a_part_once_before_any_twice() -> None:
    """Per part: consecutive draws are permutations, each pass another one, independent of the other parts."""
    order = weighted().order(seed=3)
    drawn = [order[i] for i in range(300)]
    for first, length in ((0, 7), (7, 11), (18, 3)):
        own = [r - first for r in drawn if first <= r < first + length]
        passes = [own[i: i + length] for i in range(0, len(own) - length + 1, length)]
        assert all(sorted(p) == list(range(length)) for p in passes) and len({tuple(p) for p in passes}) > 2
    own = [r - 7 for r in drawn if 7 <= r < 18]
    assert own[:11] == [mixture.Weighted({"b": mixture.Part(noise(11))}).order(seed=3)[i] for i in range(11)]


def test_the_stream_is_a_function_of_seed_and_position() -> None:
    """Any start, hosts, workers give the same rows, for both kinds; other seeds give others."""
    for source in (weighted(), mixture.Concat(parts(a=7, b=11, c=3))):
        straight = rows(source, 60)
        assert straight[24:] == rows(source, 36, start=24)
        halves = [rows(source, 30, hosts=2, host=host, batch_size=6) for host in range(2)]
        batches = [np.reshape(h[:30], (-1, 3)) for h in halves]
        assert np.concatenate(batches, 1).ravel().tolist() == straight[: batches[0].size * 2]
        with pipeline.stream(source, batch_size=6, seed=6) as stream:
            assert next(stream)["row"].tolist() != straight[:6]
    assert len(pickle.dumps(weighted().order(seed=0))) < 2000 and rows(weighted(), 36, start=24, workers=2) == rows(weighted(), 36, start=24)
    counts = Counter("abc"[weighted().place(r)[0]] for r in rows(weighted(), 870))
    assert abs(counts["a"] - 500) < 4 and abs(counts["b"] - 300) < 4 and abs(counts["c"] - 70) < 4


def test_effective_epochs_on_the_card() -> None:
    """Draws over videos, by hand; what is missing stands there too."""
    source = weighted()
    told = source.card(870)
    assert {k: v["videos"] for k, v in told.items()} == {"a": 7, "b": 11, "c": 3}
    assert [told[k]["epochs"] for k in "abc"] == pytest.approx([500 / 7, 300 / 11, 70 / 3]) and told["a"]["share"] == pytest.approx(5 / 8.7)
    declared = mixture.Concat({"a": mixture.Part(noise(8), videos=100), "own": mixture.Part(noise(2), videos=250_000)}, missing=("own",))
    assert declared.card(16) == {"a": {"videos_in_recipe": 100, "videos": 8, "share": 1.0, "epochs": 2.0}, "own": {"videos_in_recipe": 250_000, "missing": "declared"}}
    assert "missing" in card.text({"name": "x", "sources": declared.card(16)}) and len(declared) == 8


# -- parts of their own ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two indices of bars: 3 wide videos with the labels 9 and 10, 2 square ones with 10 and 11."""
    found = {}
    for name, width, labels in (("wide", 128, ["9", "10", "9"]), ("square", 64, ["11", "10"])):
        folder = tmp_path_factory.mktemp(name)
        for i in range(len(labels)):
            (folder / f"{i}.mp4").write_bytes(encode(frames=60, bf="0", width=width))
        (folder / "l.csv").write_text("\n".join(["path,label,split", *(f"{i}.mp4,{x},{'val' if i == 1 else 'train'}" for i, x in enumerate(labels))]))
        index.write(index.build(folder, labels=folder / "l.csv"), folder / "index.parquet")
        found[name] = str(folder / "index.parquet")
    return found


def config(folders: dict[str, str], /, **kw: Any) -> ml_collections.ConfigDict:
    """A config of both, each with its stride."""
    made = {name: spec(mixture.Part, source=spec(sources.VideoClips, index=path, split="all", frames=4, size=32, repeats=2, crop=transforms.CentreCrop(),
                                                 sampling=clips.DenseRandom(stride=stride)), videos=10)
            for (name, path), stride in zip(sorted(folders.items()), (2, 5), strict=True)}
    base = ml_collections.ConfigDict(type_safe=False)
    base.data = spec(mixture.Concat, parts=made, **kw)
    base.eval_data = ml_collections.ConfigDict()
    return base


def test_parts_keep_their_settings(folders: dict[str, str]) -> None:
    """Stride and shape of the source differ, the fields agree; classes are joined and labels renumbered."""
    source = configs.build(configs.from_json(configs.to_json(config(folders))).data)
    assert source.classes == ("9", "10", "11") and source.repeats == 2 and source.timeout == 30
    labels = {source.name(r): source.read(r, rng=np.random.default_rng(0))["label"].tolist() for r in range(len(source))}
    assert labels == {"square/0.mp4": [2, 2], "square/1.mp4": [1, 1], "wide/0.mp4": [0, 0], "wide/1.mp4": [1, 1], "wide/2.mp4": [0, 0]}
    whole = {n: mixture.Part(dataclasses.replace(p.source, size=64 if n == "square" else 128, crop=transforms.WholeFrame())) for n, p in source.parts.items()}
    for name, stride in (("square", 2), ("wide", 5)):
        one = mixture.Concat({name: whole[name]})
        numbers = [spelt(p) for p in one.read(0, rng=np.random.default_rng(1))["video"][0]]
        assert np.diff(numbers).tolist() == [stride] * 3
    with pytest.raises(UserError, match="fields of source 'wide' are .*128.*, those of 'square' .*64.* agree"):
        mixture.Concat(whole)


def test_a_missing_source_is_declared(folders: dict[str, str], tmp_path: pathlib.Path) -> None:
    """An index that is not there is an error that says how to go on without it; the command line does."""
    made = config(folders)
    configs.override(made, {"data.parts.wide.source.index": str(tmp_path / "no.parquet")})
    with pytest.raises(UserError, match=r"source 'wide' of the mixture: no index .*declared with --config.data.missing=wide"):
        len(configs.build(made.data))
    configs.override(made, {"data.missing": "wide"})
    source = configs.build(made.data)
    assert len(source) == 2 and source.card(4)["wide"] == {"videos_in_recipe": 10, "missing": "declared"}
    for missing in (("wide", "square"), ("wide,square",), ("wild",)):
        with pytest.raises(UserError, match="allowed are some of square, wide, but not all"):
            mixture.Concat(source.parts, missing=missing)


def test_evaluation_has_a_split(folders: dict[str, str]) -> None:
    """The split of an evaluator goes to every part; what else changes is written for the parts."""
    made = config(folders)
    source = evaluation_source(made, split="val")
    assert [source.name(r) for r in range(len(source))] == ["square/1.mp4", "wide/1.mp4"]


def test_a_column_of_labels_is_chosen_in_every_part() -> None:
    """By a probe that names one; "" is the usual column again, and a source that has no columns to choose from says so."""
    given = mixture.Concat(parts(a=2, b=3))
    chosen = mixture.labelled(given, "size")
    assert [part.source.label for part in chosen.parts.values()] == ["size"] * 2 and mixture.labelled(chosen, "") == given
    assert type(mixture.labelled(weighted(), "size")) is mixture.Weighted
    held = sources.ArrayClips(np.zeros((3, 2, 8, 8, 3), np.uint8), np.arange(3, dtype=np.int32))
    assert mixture.labelled(held, "") is held
    with pytest.raises(UserError, match="label 'size' is asked of ArrayClips, which has no choice of labels; allowed is '', its own ones"):
        mixture.labelled(mixture.Concat({"a": mixture.Part(held)}), "size")


def test_copies_must_agree(folders: dict[str, str]) -> None:
    """At construction, as is every other mistake."""
    with pytest.raises(UserError, match="repeats of source 'b' are 2, those of 'a' 1; allowed is that they agree"):
        mixture.Concat({"a": mixture.Part(noise(3)), "b": mixture.Part(noise(3, repeats=2))})
    with pytest.raises(UserError, match="weight is 0"):
        mixture.Part(noise(3), weight=0)
    with pytest.raises(UserError, match=r"\(no parts\)"):
        mixture.Concat({})


def test_the_card_of_a_run_names_the_sources() -> None:
    """`card.card` asks the source with the decoded clips of the whole run."""
    run = run_of("b", total="10", batch_size="100", optimizers__main__schedule__warmup="0")
    assert "sources" not in card.card(run)
    run.source = weighted()
    assert card.card(run)["sources"] == weighted().card(10 * 100)
