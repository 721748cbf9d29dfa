"""Every direction of `convert`, run on random weights and compared: the table, in Markdown.

    python tests/parity/table.py

Needs tests/parity/requirements.txt. `arrays` counts those that are bit for bit the same behind the conversion (there, or there and
back) of all; `figures` are largest differences over the largest value of the other side, float32 on both, and eps 1e-6 in every LayerNorm.
test_convert.py and test_parity.py hold the same comparisons as tests.
"""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[n]) for n in (2, 1)]

import jax
import numpy as np
import safetensors.numpy
import test_convert as conversion
import test_parity as parity
import transformers
from flax import traverse_util
from parity import make_golden

import videomae_jax
from videomae_jax.__main__ import main as command
from videomae_jax.convert import files, videomae

PATCH = (2, 8, 8)


@dataclasses.dataclass(frozen=True)
class Row:
    """A direction, what is converted, what it is compared with, (same, all) arrays or None, and {what: figure}."""

    direction: str
    of: str
    beside: str
    arrays: tuple[int, int] | None
    figures: Mapping[str, float]

    @property
    def line(self) -> str:
        """In Markdown."""
        arrays = "" if self.arrays is None else f"{self.arrays[0]} of {self.arrays[1]}"
        return f"| `{self.direction}` | {self.of} | {self.beside} | {arrays} | {', '.join(f'{k} {v:.1e}' for k, v in self.figures.items())} |"


def convert(*words: object) -> None:
    """The command; its account of arrays is not shown."""
    with contextlib.redirect_stdout(sys.stderr):
        if command(["convert", *map(str, words)]):
            raise SystemExit(f"convert {' '.join(map(str, words))} failed")


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], /) -> tuple[int, int]:
    """How many arrays of either side are bit for bit the same on both, and of how many."""
    names = left.keys() | right.keys()
    return sum(n in left and n in right and np.array_equal(left[n], right[n]) for n in names), len(names)


def flat(run: pathlib.Path, /) -> dict[str, np.ndarray]:
    """The parameters of a run directory by path."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(conversion.params_of(run), sep="/").items()}


def state(model: Any, /) -> dict[str, np.ndarray]:
    """The arrays of a model of theirs."""
    return {k: v.numpy() for k, v in model.state_dict().items()}


def spelt(folder: pathlib.Path, out: pathlib.Path, /) -> pathlib.Path:
    """A folder of Hugging Face whose q and v biases have the other of their two names."""
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    old = any(k.endswith(".q_bias") for k in arrays)
    pairs = (("q_bias", "query.bias"), ("v_bias", "value.bias"))
    for hub, module in pairs:
        arrays = {re.sub(rf"\.{hub if old else module}$", f".{module if old else hub}", k): v for k, v in arrays.items()}
    safetensors.numpy.save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
    return out


def pretraining(folder: pathlib.Path, /) -> list[Row]:
    """Encoder and decoder: Hugging Face in both spellings, the official file, and back."""
    model, video, masked = make_golden.build(make_golden.SMALL, seed=11), make_golden.clips(make_golden.SMALL, batch=2, seed=12), make_golden.tube(
        make_golden.SMALL, batch=2, seed=13)
    model.save_pretrained(folder / "hf")
    convert("--from=hf", folder / "hf", f"--out={folder}/run")
    theirs = make_golden.reference(model, video, masked, normalise=True)
    params = jax.tree.map(np.asarray, conversion.params_of(folder / "run"))
    ours = parity.evaluate(parity.SMALL, params, video, masked, label="normalised")
    wanted = videomae.from_hf({k.removeprefix("grad/"): v for k, v in theirs.items() if k.startswith("grad/")}, heads=4, decoder_heads=3)
    figures = {k: parity.distance(ours[k], theirs[k]) for k in ("predictions", "tokens", "loss")}
    figures["gradients"] = max(jax.tree.leaves(jax.tree.map(parity.distance, ours["grad"], wanted)))
    convert("--from=hf", spelt(folder / "hf", folder / "spelt"), f"--out={folder}/spelt_run")
    official = videomae.to_official(params, patch=PATCH)
    conversion.save(folder / "a.pth", official)
    convert("--from=videomae_v2", folder / "a.pth", f"--out={folder}/official_run", *conversion.HEADS, *conversion.SIZES)
    convert("--to=hf", folder / "run", f"--out={folder}/back")
    back = type(model).from_pretrained(folder / "back")
    convert("--to=videomae", folder / "official_run", f"--out={folder}/b.pth")
    return [Row("--from=hf", "pretraining", "transformers", None, figures),
            Row("--from=hf", "pretraining, the biases' other name", "the run above", same(flat(folder / "spelt_run"), flat(folder / "run")), {}),
            Row("--to=hf", "pretraining", "transformers' `from_pretrained`, and the source", same(state(back), state(model)), {}),
            Row("--from=videomae, videomae_v2", "pretraining", "the run above", same(flat(folder / "official_run"), flat(folder / "run")), {}),
            Row("--to=videomae", "pretraining", "the source", same(files.read(folder / "b.pth").state, official), {})]


def classification(folder: pathlib.Path, /) -> list[Row]:
    """Encoder and head: likewise, and the features that V2 has on the hub."""
    model = conversion.randomised(transformers.VideoMAEForVideoClassification(conversion.settings(transformers, use_mean_pooling=True, num_labels=5)), seed=14)
    model.save_pretrained(folder / "hf")
    convert("--from=hf", folder / "hf", f"--out={folder}/run")
    video, pixels = conversion.clip()
    opened, tokens = videomae_jax.load(folder / "run"), model.videomae(pixels).last_hidden_state
    pooled, logits = (x.detach().numpy() for x in (model.fc_norm(tokens.mean(1)), model(pixels).logits))
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    figures = {"probabilities": parity.distance(opened.classify(video).probabilities, probabilities), "pooled": parity.distance(opened.encode(video).pooled, pooled)}
    convert("--to=hf", folder / "run", f"--out={folder}/back")
    official = videomae.classifier_to_official(conversion.params_of(folder / "run"), patch=PATCH)
    conversion.save(folder / "a.pth", official)
    convert("--from=videomae_v2", folder / "a.pth", f"--out={folder}/official_run", *conversion.HEADS, *conversion.SIZES)
    convert("--to=videomae", folder / "official_run", f"--out={folder}/b.pth")
    (folder / "v2").mkdir()
    safetensors.numpy.save_file({f"model.{k}": np.ascontiguousarray(v) for k, v in official.items() if not k.startswith("head.")}, folder / "v2/model.safetensors")
    (folder / "v2/config.json").write_text(json.dumps({"model_config": {"num_heads": 4, "img_size": 32, "num_frames": 8}}))
    convert("--from=videomae_v2", folder / "v2", f"--out={folder}/v2_run", "--allow=missing:head/linear/.*")
    features = {"pooled": parity.distance(videomae_jax.load(folder / "v2_run").encode(video).pooled, pooled)}
    return [Row("--from=hf", "classifier", "transformers", None, figures),
            Row("--to=hf", "classifier", "transformers' `from_pretrained`, and the source", same(state(type(model).from_pretrained(folder / "back")), state(model)), {}),
            Row("--from=videomae, videomae_v2", "classifier", "the run above", same(flat(folder / "official_run"), flat(folder / "run")), {}),
            Row("--to=videomae", "classifier", "the source", same(files.read(folder / "b.pth").state, official), {}),
            Row("--from=videomae_v2", "features of V2 on the hub", "transformers with the same weights", None, features)]


def published(folder: pathlib.Path, /) -> list[Row]:
    """Hugging Face at the published size of ViT-B: minutes, and 1.5 GB of files."""
    found = []
    for kind, of in (("pretraining", "pretraining"), ("classification", "classifier of 400 classes")):
        (folder / kind).mkdir()
        found += [Row("--from=hf", f"{of}, ViT-B, 16 x 224 x 224", "transformers", None, conversion.whole(kind, transformers, folder / kind))]
    return found


def faces(folder: pathlib.Path, /) -> list[Row]:
    """MARLIN."""
    import test_convert_marlin as marlin

    arrays, tree = marlin.theirs()
    convert("--from=marlin", conversion.save(folder / "c.npz", arrays), f"--out={folder}/marlin", "--allow=missing:critic/.*", *marlin.SIZES)
    both = (flat(folder / "marlin"), traverse_util.flatten_dict(tree, sep="/"))
    networks = [{k: np.asarray(v) for k, v in found.items() if not k.startswith("critic/")} for found in both]
    return [Row("--from=marlin", "pretraining without the critic", "a tree written out by hand; its description in numpy, float64", same(*networks),
                marlin.figures(folder / "marlin", arrays))]


def learned(folder: pathlib.Path, /) -> list[Row]:
    """MAE-ST."""
    import test_convert_mae_st as mae_st

    arrays, tree = mae_st.theirs()
    convert("--from=mae_st", conversion.save(folder / "a.npz", arrays), f"--out={folder}/mae_st", "--heads=2", "--decoder-heads=2")
    wanted = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
    return [Row("--from=mae_st", "pretraining", "a tree written out by hand; its description in numpy, float64",
                same(flat(folder / "mae_st"), wanted), mae_st.figures(folder / "mae_st", arrays))]


def prism(folder: pathlib.Path, /) -> list[Row]:
    """VideoPrism."""
    arrays = conversion.videoprism_state()
    convert("--from=videoprism", conversion.save(folder / "b.npz", arrays), f"--out={folder}/prism", "--allow=missing:head/.*")
    model, video = videomae_jax.load(folder / "prism"), np.random.default_rng(1).integers(0, 256, (2, 3, 12, 12, 3), np.uint8)
    want = conversion.videoprism_reference(arrays, video / 255)
    return [Row("--from=videoprism", "video encoder", "its description in numpy, float64", None,
                {"tokens": parity.distance(model.encode(video).tokens.reshape(want.shape), want)})]


# A family whose recipe is not here has no test of its own either, whose arrays are converted.
OPTIONAL = {"mae_st": learned, "marlin": faces}


def kinds() -> list[Any]:
    """All comparisons that can be made here."""
    return [pretraining, classification, *(kind for name, kind in OPTIONAL.items() if importlib.util.find_spec(f"test_convert_{name}")), prism]


def rows(folder: pathlib.Path, chosen: Sequence[Any], /) -> list[Row]:
    """The chosen comparisons, in new folders below `folder`."""
    found = []
    for kind in chosen:
        (folder / kind.__name__).mkdir()
        found += kind(folder / kind.__name__)
    return found


def main() -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        found = rows(pathlib.Path(folder), [*kinds(), published])
    print("\n".join(["| `convert` | of | compared with | arrays bit for bit | largest difference / largest value |", "|---|---|---|---|---|", *(r.line for r in found)]))
    print(f"\njax {jax.__version__}, transformers {transformers.__version__}, {jax.devices()[0].device_kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
