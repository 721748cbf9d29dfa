"""VideoMAE V1 and its toy evidence: the published rows, the loss of V1 mode, and arms that differ in what they claim to."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import config as configs
from videomae_jax import masking, targets
from videomae_jax.models import patches, vit
from videomae_jax.objectives.mae import MAE

ROOT = pathlib.Path(__file__).resolve().parents[2]
# batch, peak LR, epochs, stride, visible, decoded, decoder (width, depth, heads): V1's scripts.
ROWS = {
    "k400_s": (1024, 6e-4, "1600ep", 4, 160, 1408, (192, 4, 3)), "k400_b": (2048, 1.2e-3, "1600ep", 4, 160, 1408, (384, 4, 6)),
    "k400_l": (512, 3e-4, "1600ep", 4, 160, 1408, (512, 12, 8)), "k400_h": (1024, 6e-4, "1600ep", 4, 160, 1408, (640, 12, 8)),
    "ssv2_s": (2048, 1.2e-3, "2400ep", 2, 160, 1408, (192, 4, 3)), "ssv2_b": (2048, 1.2e-3, "2400ep", 2, 160, 1408, (384, 4, 6)),
    "ucf101_b": (192, 2.25e-4, "3200ep", 4, 392, 1176, (384, 4, 6))}


def loaded(name: str) -> Any:
    """A config file."""
    return configs.load(str(ROOT / "configs" / f"{name}.py"))


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_scripts(name: str) -> None:
    """Batch, peak rate, length, sampling, token counts and decoder of every published run."""
    config = loaded(f"videomae/{name}")
    batch, peak, total, stride, visible, decoded, decoder = ROWS[name]
    objective, schedule = configs.build(config.objective), configs.build(config.optimizers.main).schedule
    assert config.batch_size == batch and config.total == total and config.data.repeats == 1 and config.data.sampling.stride == stride
    assert schedule.scaled(schedule.base, batch=batch) == pytest.approx(peak) and schedule.warmup == "40ep"
    assert objective.counts() == {"all": 1568, "visible": visible, "decoded": decoded, "decoder": 1568}
    d = objective.decoder
    assert (d.width, d.depth, d.heads) == decoder and d.hidden == 4 * d.width and config.optimizers.main.clip == 0


def test_v1_loss_is_the_plain_mean_over_all_hidden_tokens() -> None:
    """No weights, no selection: mean over 1408 x 1536 in V1, here over every hidden value of two small clips."""
    encoder = vit.Encoder(width=16, depth=1, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=32)
    objective = MAE(encoder=encoder, decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=32), encoder_mask=masking.Random(0.75), decoder_mask=masking.Hidden())
    rng = np.random.default_rng(0)
    batch = {"video": jnp.asarray(rng.integers(0, 256, (2, 4, 32, 32, 3)), jnp.uint8), "key": jnp.asarray([[0, 0], [1, 0]], jnp.uint32), "valid": jnp.ones(2, bool)}
    params = jax.tree.map(lambda x: x.value if hasattr(x, "value") else x, objective.init(jax.random.key(0), batch), is_leaf=lambda x: hasattr(x, "value"))
    out = objective.loss(params, {}, batch, jax.random.key(1), step=jnp.zeros(()), train=False)
    term = out.terms["reconstruction"]
    predicted = objective.predict(params, {}, batch, jax.random.key(1))
    hidden = [sorted(set(range(32)) - set(np.asarray(row).tolist())) for row in predicted.masks.visible]
    cubes = np.asarray(patches.patchify(patches.to_unit(batch["video"]), patch=(2, 8, 8)))
    want = np.stack([np.asarray(targets.standardise_per_channel(c[None]))[0][ids] for c, ids in zip(cubes, hidden, strict=True)])
    plain = np.mean((np.asarray(predicted.patches, np.float64) - want) ** 2)
    assert predicted.patches.shape == (2, 24, 384) and np.asarray(predicted.masks.target).tolist() == hidden
    # Float32 sums of 18432 squares of order 1.
    assert float(term.total.sum() / term.weight.sum()) == pytest.approx(plain, rel=1e-5)


def test_arms_of_the_toys_differ_in_what_they_claim_to() -> None:
    """Masks leave the same 16 tokens visible; decoders see 64, 32, 48 and 16."""
    config = loaded("toy/videomae")
    suite = configs.build(config.evidence)
    arms = {a.name: a.resolve(config) for a in suite.arms}
    for name, layout in (("tube", "tube"), ("random", "token"), ("frame", "frame")):
        objective = configs.build(arms[name].objective)
        assert objective.counts()["visible"] == 16 and objective.encoder_mask.layout == layout
    config = loaded("toy/videomae_v2")
    decoded = {a.name: configs.build(a.resolve(config).objective).counts()["decoded"] for a in configs.build(config.evidence).arms}
    assert decoded == {"v1": 48, "dual": 32, "dual_25": 48, "dual_75": 16, "all_decoded": 32, "random": 32, "frame": 32}
    assert all(not a.changes or a.changes[0][0].startswith("objective.") for a in configs.build(config.evidence).arms)
