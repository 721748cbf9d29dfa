"""The recipe card of published configs: learning rates, epochs, cost and disk."""

import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny

from test_forward import equations

from videomae_jax import card, optim, parallel
from videomae_jax import config as configs
from videomae_jax.assembly import assemble, make_updates
from videomae_jax.errors import UserError
from videomae_jax.models import probing
from videomae_jax.objectives.mae import block_macs


class Source:
    """Videos of UnlabeledHybrid's number, four crops each."""

    repeats = 4

    def __len__(self) -> int:
        return 1_348_000


def run_of(size: str, /, **overrides: str) -> types.SimpleNamespace:
    """A published run as the card sees it, without data and without memory."""
    config = configs.load(f"configs/pretrain/vit_{size}.py")
    configs.override(config, {k.replace("__", "."): v for k, v in overrides.items()})
    objective, source = configs.build(config.objective), Source()
    params = parallel.unbox(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    abstract = types.SimpleNamespace(params=params, opt={"train": (count, params, params)}, extra={}, ema={})
    per_epoch = len(source) / config.batch_size
    total = configs.duration(config.total, total=None, steps_per_epoch=per_epoch)
    return types.SimpleNamespace(
        config=config, objective=objective, source=source, mesh=types.SimpleNamespace(shape={"data": 64, "fsdp": 1, "tensor": 1}),
        abstract=abstract, steps_per_epoch=per_epoch, total=total, updates=make_updates(objective, config, total=total, steps_per_epoch=per_epoch),
        clips=config.batch_size * source.repeats, draws=1)


@pytest.mark.parametrize(("size", "batch", "base", "peak", "minimum", "epochs", "warmup", "parameters", "macs"), [
    ("b", 1024, 1e-3, 4e-3, 4e-5, 200, 20, 94_210_944, 25.84), ("l", 1536, 1e-3, 6e-3, 6e-5, 300, 30, 317_782_016, 68.27),
    ("h", 2048, 1e-3, 8e-3, 8e-5, 300, 30, 645_659_392, 122.09), ("g", 2048, 6e-4, 4.8e-3, 8e-5, 300, 30, 1_026_306_560, 241.61)])
def test_cards_of_the_published_runs(size: str, batch: int, base: float, peak: float, minimum: float, epochs: int, warmup: int,
                                     parameters: int, macs: float) -> None:
    """The table of scripts: batch, learning rates, epochs times four crops, parameters, and the cost of the paper."""
    run = run_of(size)
    values = card.card(run)
    assert (values["decoded_clips_per_step"], values["global_batch_clips"], values["copies_of_a_decode"]) == (batch, 4 * batch, 4)
    schedule = values["schedules"]["train"]
    assert schedule["base_lr"] == base and schedule["peak_lr"] == pytest.approx(peak) and schedule["min_lr"] == pytest.approx(minimum)
    assert schedule["peak_lr_formula"] == f"{base:g} x {batch} / 256" and schedule["shape"] == "cosine"
    assert schedule["warmup_steps"] == round(warmup * 1_348_000 / batch)
    assert values["epochs"] == pytest.approx(epochs, rel=1e-5) and values["effective_epochs"] == pytest.approx(4 * epochs, rel=1e-5)
    assert values["steps"] == round(epochs * 1_348_000 / batch)
    assert values["parameters"] == parameters
    e, tokens = run.objective.encoder, values["tokens_per_clip"]
    embed_the_hidden = (tokens["all"] - tokens["visible"]) * e.values * e.width  # the paper embeds all tokens, we the visible ones
    assert (values["forward_macs_per_clip"] + embed_the_hidden) / 1e9 == pytest.approx(macs, abs=0.00501)


@dataclasses.dataclass(frozen=True)
class Mine(optim.Schedule):
    """A schedule of a package of the user's own."""


@dataclasses.dataclass(frozen=True)
class Descent(optim.SGD):
    """An optimiser of a package of the user's own."""


def test_an_optimiser_of_ones_own_has_a_card() -> None:
    """With the trust that the run was built with: a run without a card cannot start."""
    optimizer = configs.spec(Descent, schedule=Mine(0.5, minimum=0.0, unit=0, warmup="0", shape="constant"))
    config = tiny.tiny(configs.load("configs/tiny.py"), optimizer=optimizer)
    with pytest.raises(UserError, match="--trust"):
        assemble(config, trust=tiny.TRUST, devices=jax.devices()[:1])
    run = assemble(config, trust=(*tiny.TRUST, __name__), devices=jax.devices()[:1])
    assert card.card(run)["schedules"]["train"] == {"base_lr": 0.5, "peak_lr": 0.5, "peak_lr_formula": "0.5 (not scaled)", "min_lr": 0.0,
                                                    "warmup_steps": 0, "shape": "constant"}


def test_flops_and_tokens() -> None:
    """A training step is three forward passes of two operations a multiply-add, without the gradient of the pixels; every crop counts as a clip."""
    run = run_of("b")
    values = card.card(run)
    clips = run.total * 4096
    assert values["clips_seen"] == clips and values["tokens_seen"] == clips * 1568
    assert values["train_flops_per_clip"] == 6 * values["forward_macs_per_clip"] - 2 * 160 * 1536 * 768
    assert values["train_flops_per_clip"] == pytest.approx(144.7e9, abs=0.05e9)  # the specification's figure
    assert values["train_flops_total"] == values["train_flops_per_clip"] * clips
    assert values["tokens_per_clip"] == {"all": 1568, "visible": 160, "decoded": 784, "decoder": 944}


@pytest.mark.parametrize(("head", "shape"), [
    (probing.Attentive(classes=5, count=2, blocks=3, heads=2, ratio=3), (1, 7, 8)), (probing.Attentive(classes=5, count=3, blocks=1, heads=2), (1, 7, 8)),
    (probing.Linear(classes=5, count=4), (1, 8))])
def test_macs_of_heads_count_every_product(head: Any, shape: tuple[int, ...]) -> None:
    """The traced products of all heads for one clip."""
    x = jnp.zeros(shape)
    params = parallel.unbox(jax.eval_shape(head.init, jax.random.key(0), x))
    total = 0
    for equation, times in equations(jax.make_jaxpr(head.apply)(params, x).jaxpr):
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contract)
    assert total == head.count * head.macs(tokens=7, width=8)


def test_frozen_parts_have_no_backward_pass() -> None:
    """Two operations a multiply-add instead of six, for the encoder under a probe."""
    probe = configs.build(configs.load("configs/probe/attentive_k400_l.py").objective)
    e, n = probe.encoder, probe.encoder.grid.tokens
    cost = probe.cost()
    assert cost.frozen == n * e.values * e.width + e.depth * block_macs(n, e.width, e.hidden)
    heads = probe.head.count * probe.head.macs(tokens=n * max(1, len(probe.layers)), width=e.width)
    assert cost.train_flops == 2 * cost.frozen + 6 * heads and cost.macs == cost.frozen + heads


def test_rate_without_scaling() -> None:
    """unit 0 says so instead of dividing by zero."""
    values = card.card(run_of("b", optimizers__main__schedule__unit="0"))
    assert values["schedules"]["train"]["peak_lr"] == 1e-3
    assert values["schedules"]["train"]["peak_lr_formula"] == "0.001 (not scaled)"


@pytest.mark.parametrize(("every", "keep_last", "keep_every", "kept"), [
    ("5%", "2", "", 3), ("5%", "1", "0", 2), ("10%", "2", "20%", 3 + 5), ("10%", "2", "10%", 3 + 10), ("100", "3", "150", 4 + 3), ("", "2", "10%", 3)])
def test_checkpoints_on_disk(every: str, keep_last: str, keep_every: str, kept: int) -> None:
    """The newest, one being written, and the saves whose step is a multiple of keep_every; 1000 steps."""
    run = run_of("b", checkpoint__every=every, checkpoint__keep_last=keep_last, checkpoint__keep_every=keep_every)
    run.total = 1000
    values = card.card(run)
    assert values["checkpoints_kept"] == kept
    assert values["checkpoint_bytes"] == 3 * 4 * 94_210_944 + 4  # parameters and two moments in float32, one counter
    assert values["checkpoints_disk_bytes"] == kept * values["checkpoint_bytes"]


def test_text() -> None:
    """One line a number, grouped digits, nested names with dots."""
    values: dict[str, Any] = card.card(run_of("b"))
    lines = card.text(values).splitlines()
    assert lines[0] == "recipe card: videomae_v2_B"
    shown = {" ".join(line[:44].split()): line[44:].strip() for line in lines[1:]}
    assert shown["parameters"] == "94,210,944" and shown["schedules.train.peak lr"] == "0.004" and shown["effective epochs"] == "799.999"
    assert shown["mesh.data"] == "64" and shown["schedules.train.peak lr formula"] == "0.001 x 1024 / 256"
    assert len(lines) == len(configs.flat(values))
