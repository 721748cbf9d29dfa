"""Learning rates, decay rules and the optimiser against V2's rules, arithmetic by hand and torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videomae_jax import optim, parallel, supervision
from videomae_jax.errors import UserError
from videomae_jax.models import heads, mae_st, probing, vit
from videomae_jax.objectives.mae import MAE

GOLDEN = [0, 0.25, 0.5, 0.75, 1, 1, 0.9902, 0.9611, 0.9141, 0.8511, 0.775, 0.6891, 0.597, 0.503, 0.4109, 0.325, 0.2489, 0.1859, 0.1389, 0.1098]


def abstract(size: str) -> dict:
    """Shapes of a published pretraining model, no memory."""
    objective = MAE(encoder=vit.encoder(size), decoder=vit.decoder(size))
    return parallel.unbox(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))


def test_schedule_golden_sequence() -> None:
    """Peak 1, minimum .1, 4 epochs of 5 steps, one of warm-up: 4 decimals as published."""
    rates = [float(optim.warmup_cosine(s, peak=1.0, minimum=0.1, warmup=5, total=20)) for s in range(20)]
    np.testing.assert_allclose(rates, GOLDEN, atol=5.1e-5)
    assert rates[0] == 0 and rates[4] == rates[5] == 1


def test_schedule_in_the_units_of_the_paper() -> None:
    """The same sequence through epochs, base rate and batch; the minimum scales alike."""
    schedule = optim.Schedule(base=0.25, minimum=0.025, warmup="1ep")
    rates = [float(schedule.at(s, batch=1024, total=20, steps_per_epoch=5)) for s in range(20)]
    np.testing.assert_allclose(rates, GOLDEN, atol=5.1e-5)
    percent = optim.Schedule(base=1.0, minimum=0.1, warmup="25%", unit=0)
    np.testing.assert_allclose([float(percent.at(s, batch=7, total=20, steps_per_epoch=3)) for s in range(20)], rates, atol=1e-7)


def test_schedule_without_warmup_and_constant() -> None:
    """No warm-up starts at the peak; one warm-up step has rate 0; "constant" stays at the peak."""
    cosine = optim.Schedule(base=2.0, minimum=0.0, warmup="0", unit=0)
    assert float(cosine.at(0, batch=1, total=10, steps_per_epoch=1)) == 2
    assert float(cosine.at(5, batch=1, total=10, steps_per_epoch=1)) == pytest.approx(1, abs=1e-6)
    one = optim.Schedule(base=2.0, warmup="1", unit=0)
    assert [float(one.at(s, batch=1, total=10, steps_per_epoch=1)) for s in (0, 1)] == [0, 2]
    constant = optim.Schedule(base=2.0, warmup="3", unit=0, shape="constant")
    assert [float(constant.at(s, batch=1, total=10, steps_per_epoch=1)) for s in range(5)] == [0, 1, 2, 2, 2]
    flat = optim.Schedule(base=2.0, warmup="0", unit=0, shape="constant")
    assert float(flat.at(0, batch=1, total=10, steps_per_epoch=1)) == 2


@pytest.mark.parametrize(("size", "base", "batch", "peak", "minimum"), [
    ("B", 1e-3, 1024, 4e-3, 4e-5), ("L", 1e-3, 1536, 6e-3, 6e-5), ("H", 1e-3, 2048, 8e-3, 8e-5), ("g", 6e-4, 2048, 4.8e-3, 8e-5)])
def test_peak_rates_of_the_published_runs(size: str, base: float, batch: int, peak: float, minimum: float) -> None:
    """base * decoded clips / 256; the four crops of a decode do not count."""
    schedule = optim.Schedule(base=base)
    assert schedule.scaled(schedule.base, batch=batch) == pytest.approx(peak, rel=1e-12)
    assert schedule.scaled(schedule.minimum, batch=batch) == pytest.approx(minimum, rel=1e-12)


def test_schedule_mistakes() -> None:
    """Too long a warm-up, and an unknown shape."""
    with pytest.raises(UserError, match=r"warm-up of 20 steps \(4ep\) is not shorter than the total of 20 steps"):
        optim.Schedule(base=1.0, warmup="4ep").at(0, batch=1, total=20, steps_per_epoch=5)
    with pytest.raises(UserError, match="shape 'step'; allowed are 'cosine' and 'constant'"):
        optim.Schedule(base=1.0, shape="step")


def test_weight_decay_of_every_leaf_of_the_pretraining_model() -> None:
    """V2: 1-D parameters, biases, scales and the mask token are excluded; every matrix of the network is decayed.

    In V2's model a leaf of a block is 1-D exactly when ours, stacked over layers, has the names below.
    """
    params = abstract("B")
    block = {"attn/qkv": True, "attn/q_bias": False, "attn/v_bias": False, "attn/out": True, "attn/out_bias": False,
             "norm1/scale": False, "norm1/bias": False, "norm2/scale": False, "norm2/bias": False,
             "mlp/fc1/kernel": True, "mlp/fc1/bias": False, "mlp/fc2/kernel": True, "mlp/fc2/bias": False}
    expected = {f"{part}/stack/block/{k}": v for part in ("encoder", "decoder") for k, v in block.items()}
    expected |= {"encoder/embed/kernel": True, "encoder/embed/bias": False, "encoder/norm/scale": False, "encoder/norm/bias": False,
                 "decoder/bridge/kernel": True, "decoder/mask_token": False, "decoder/norm/scale": False, "decoder/norm/bias": False,
                 "decoder/head/kernel": True, "decoder/head/bias": False}
    actual = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(optim.decays(params)), strict=True))
    assert actual == expected


def test_weight_decay_of_leaves_that_other_models_add() -> None:
    """Any 1-D or scalar leaf is excluded whatever its name, position tables and tokens whatever their shape."""
    params = {"temperature": jnp.zeros(()), "vector": jnp.zeros(3), "pos_embed": jnp.zeros((1, 4, 3)), "cls_token": jnp.zeros((1, 1, 3)),
              "logit_scale": jnp.zeros((2, 1, 1)), "embed": {"kernel": jnp.zeros((3, 3))}}
    assert optim.decays(params) == {"temperature": False, "vector": False, "pos_embed": False, "cls_token": False, "logit_scale": False,
                                    "embed": {"kernel": True}}


@pytest.mark.parametrize(("size", "decay", "depth"), [("B", 0.75, 12), ("g", 0.9, 40)])
def test_layer_decay(size: str, decay: float, depth: int) -> None:
    """decay ** (L + 1 - i): the embedding i = 0, block k i = k + 1, everything else 1."""
    params = abstract(size)
    scales = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(optim.layer_scales(params, decay)), strict=True))
    shapes = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(params), strict=True))
    assert scales["encoder/embed/kernel"] == scales["encoder/embed/bias"] == decay ** (depth + 1)
    for path, scale in scales.items():
        if path.startswith("encoder/stack/"):
            assert np.broadcast_shapes(scale.shape, shapes[path].shape) == shapes[path].shape and scale.shape[0] == depth
            np.testing.assert_allclose(scale.ravel(), [decay ** (depth - k) for k in range(depth)], rtol=1e-12)
        elif not path.startswith("encoder/embed/"):
            assert scale == 1
    if size == "B":
        assert round(scales["encoder/embed/kernel"], 4) == 0.0238
        blocks = scales["encoder/stack/block/attn/q_bias"].ravel()
        assert round(blocks[0], 4) == 0.0317 and blocks[-1] == 0.75


def test_layer_decay_of_learned_positions_and_class_tokens() -> None:
    """MAE-ST's lr_decay: what comes before the blocks has the embedding's rate, the head the whole one."""
    network = supervision.Network(mae_st.encoder("L"), heads.Classifier(classes=4))
    params = parallel.unbox(jax.eval_shape(network.init, jax.random.key(0)))
    scales = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(optim.layer_scales(params, 0.75)), strict=True))
    lowest = {path for path, scale in scales.items() if np.ndim(scale) == 0 and scale == 0.75**25}
    sequence = {f"encoder/sequence/{name}" for name in ("space", "time", "class", "class_position")}
    assert lowest == sequence | {"encoder/embed/kernel", "encoder/embed/bias"}
    assert {path for path, scale in scales.items() if np.ndim(scale) == 0 and scale == 1} == {path for path in scales if path.startswith("head/")}


def test_layer_decay_of_encoders_of_two_modalities() -> None:
    """One stack has the rule of a single modality, the last norm the rate of the head; with a stack for each modality there is no rule."""
    leaf, block = jnp.zeros((2, 2)), {"block": {"kernel": jnp.zeros((3, 2, 2))}}
    early = {"video_embed": {"kernel": leaf}, "audio_embed": {"kernel": leaf}, "stack": block, "norm": {"scale": leaf}}
    scales = optim.layer_scales({"encoder": early}, 0.5)["encoder"]
    assert [scales[name]["kernel"] for name in ("video_embed", "audio_embed")] == [0.5**4] * 2 and scales["norm"]["scale"] == 1
    with pytest.raises(UserError, match="layer decay 0.5 needs all blocks of the encoder under encoder/stack; there are encoder/audio_stack, encoder/video_stack too"):
        optim.layer_scales({"encoder": early | {"video_stack": block, "audio_stack": block}}, 0.5)


def check_axis_of_layers(tree: Any) -> None:
    """`optim.layer_axis` of every leaf is the axis that the boxed parameters of a model call layers."""
    names = jax.tree.leaves(parallel.logical_axes(tree), is_leaf=lambda x: isinstance(x, tuple))
    found = {path: optim.layer_axis(path) for path in jax.tree.leaves(optim.paths(parallel.unbox(tree)))}
    assert found == {path: axes.index("layers") if "layers" in axes else None for path, axes in zip(found, names, strict=True)}
    assert set(found.values()) > {None}


def test_the_axis_of_layers_is_the_one_that_the_models_name() -> None:
    """Of encoder and decoder, and behind the axis of a probe's heads."""
    probe, objective = probing.Attentive(classes=3, count=5, blocks=3, heads=2), MAE(encoder=vit.encoder("B"), decoder=vit.decoder("B"))
    check_axis_of_layers({"heads": jax.eval_shape(probe.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1, 8), jnp.float32))["params"]})
    check_axis_of_layers(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))


def test_layer_decay_needs_an_encoder() -> None:
    """Silently decaying nothing would look like a weak result."""
    with pytest.raises(UserError, match="layer decay 0.75 needs leaves under encoder/stack; there are head/kernel"):
        optim.AdamW(schedule=optim.Schedule(base=1.0), layer_decay=0.75).transform().init({"head": {"kernel": jnp.zeros((2, 2))}})


def small() -> tuple[dict, list[dict]]:
    """A tree with decayed, undecayed and layered leaves, and three gradients of it."""
    rng = np.random.default_rng(0)

    def tree(scale: float) -> dict:
        leaf = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
        return {"encoder": {"embed": {"kernel": leaf(5, 4), "bias": leaf(4)}, "stack": {"block": {"kernel": leaf(2, 4, 4), "q_bias": leaf(2, 2, 2)}}},
                "decoder": {"mask_token": leaf(3), "head": {"kernel": leaf(3, 2)}}}

    return tree(1.0), [tree(s) for s in (0.1, 0.3, 0.03)]  # norms that clipping changes by different factors


def run(optimizer: optim.AdamW, rate: float) -> dict:
    """Parameters after the three gradients, as float64 by path."""
    params, grads = small()
    transform = optimizer.transform()
    state = transform.init(params)
    for grad in grads:
        moves, state = transform.update(grad, state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, moves)
    return by_path(params)


def by_path(tree: dict) -> dict[str, np.ndarray]:
    """{"a/b": float64 array}."""
    return dict(zip(jax.tree.leaves(optim.paths(tree)), (np.asarray(x, np.float64) for x in jax.tree.leaves(tree)), strict=True))


DECAYED = {"encoder/embed/kernel", "encoder/stack/block/kernel", "decoder/head/kernel"}


def expected(*, rate: float, decay: float, clip: float, b1: float = 0.9, b2: float = 0.95, layers: float = 1.0) -> dict:
    """The same by hand in float64: clip by global norm, moments with bias correction, decoupled decay, rate by layer."""
    params, grads = small()
    params, m, v = by_path(params), {}, {}
    scale = {k: np.ones(()) for k in params}
    if layers != 1:
        scale |= {k: np.asarray(layers**3) for k in params if "/embed/" in k}
        scale |= {k: np.array([layers**2, layers]).reshape(2, *[1] * (x.ndim - 1)) for k, x in params.items() if "/stack/" in k}
    for t, grad in enumerate(map(by_path, grads), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        factor = min(1, clip / norm) if clip else 1
        for k, g in grad.items():
            m[k] = b1 * m.get(k, 0) + (1 - b1) * g * factor
            v[k] = b2 * v.get(k, 0) + (1 - b2) * (g * factor) ** 2
            step = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + 1e-8)
            params[k] = params[k] - rate * scale[k] * (step + (decay * params[k] if k in DECAYED else 0))
    return params


@pytest.mark.parametrize(("clip", "layers"), [(0.0, 1.0), (0.02, 1.0), (100.0, 1.0), (0.3, 0.75)])
def test_adamw_by_hand(clip: float, layers: float) -> None:
    """Three steps against float64; 2e-6 is float32 rounding of parameters near 1."""
    schedule = optim.Schedule(base=1.0)
    got = run(optim.AdamW(schedule=schedule, weight_decay=0.05, clip=clip, layer_decay=layers), rate=1e-2)
    want = expected(rate=1e-2, decay=0.05, clip=clip, layers=layers)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=2e-6, err_msg=path)
    without = [{"decay": 0.0}] + [{"clip": 0.0}] * (clip in (0.02, 0.3)) + [{"layers": 1.0}] * (layers != 1)
    for change in without:  # so the test can tell
        wrong = expected(**({"rate": 1e-2, "decay": 0.05, "clip": clip, "layers": layers} | change))
        assert np.abs(got["encoder/embed/kernel"] - wrong["encoder/embed/kernel"]).max() > 1e-4, change


def test_adamw_against_torch() -> None:
    """torch.optim.AdamW with V2's two parameter groups and clip_grad_norm_; its extra 1e-6 in the norm is the tolerance."""
    torch = pytest.importorskip("torch")
    params, grads = small()
    tensors = {k: torch.nn.Parameter(torch.tensor(np.asarray(x, np.float32))) for k, x in by_path(params).items()}
    groups = [{"params": [t for k, t in tensors.items() if k in DECAYED], "weight_decay": 0.05},
              {"params": [t for k, t in tensors.items() if k not in DECAYED], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for grad in grads:
        for k, g in by_path(grad).items():
            tensors[k].grad = torch.tensor(g.astype(np.float32))
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 0.5)
        optimizer.step()
    got = run(optim.AdamW(schedule=optim.Schedule(base=1.0), clip=0.5), rate=1e-2)
    for path, tensor in tensors.items():
        np.testing.assert_allclose(got[path], tensor.detach().numpy(), atol=3e-6, err_msg=path)


def test_state_keeps_its_structure_when_parts_are_switched_on() -> None:
    """A forked run may change clip and layer decay: the saved moments must still fit."""
    params, _ = small()
    schedule = optim.Schedule(base=1.0)
    structures = {jax.tree.structure(optim.AdamW(schedule=schedule, clip=c, layer_decay=d).transform().init(params)) for c in (0, 1.0) for d in (1.0, 0.9)}
    assert len(structures) == 1


def test_sgd_is_the_gradient() -> None:
    """No moments, no decay, no clipping."""
    params, (grad, *_) = small()
    moves, _ = optim.SGD(schedule=optim.Schedule(base=1.0)).transform().update(grad, optax.EmptyState(), params)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), moves, grad))


def test_select_and_merge() -> None:
    """A phase's leaves by a full match of their path, put back in place; a pattern that matches nothing is a mistake."""
    params, _ = small()
    part = optim.select(params, r"decoder/.*|encoder/embed/bias")
    assert set(jax.tree.leaves(optim.paths(part))) == {"decoder/mask_token", "decoder/head/kernel", "encoder/embed/bias"}
    merged = optim.merge(params, jax.tree.map(lambda x: x + 1, part))
    for path, value in by_path(merged).items():
        np.testing.assert_allclose(value - by_path(params)[path], 1.0 if path in jax.tree.leaves(optim.paths(part)) else 0.0, atol=1e-6)
    with pytest.raises(UserError, match="no parameter matches 'decoder'; there are"):
        optim.select(params, "decoder")


def test_the_first_moment_may_take_two_bytes() -> None:
    """Stored in bfloat16, computed in float32: updates differ by its rounding, the second moment not at all."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)}
    grads = [{"w": jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)} for _ in range(3)]
    states, moves = {}, {}
    for kind in ("float32", "bfloat16"):
        transform = optim.AdamW(optim.Schedule(base=1.0), first_moment=kind).transform()
        states[kind] = transform.init(params)
        for g in grads:
            moves[kind], states[kind] = transform.update(g, states[kind], params)
    half, full = states["bfloat16"][1], states["float32"][1]
    assert half.mu["w"].dtype == jnp.bfloat16 and full.mu["w"].dtype == half.nu["w"].dtype == jnp.float32
    np.testing.assert_array_equal(half.nu["w"], full.nu["w"])
    error = np.abs(np.asarray(moves["bfloat16"]["w"] - moves["float32"]["w"]))
    assert 0 < error.max() < 3 * 2.0**-8  # eight bits of mantissa, three roundings of means of about 1
    with pytest.raises(UserError, match="first_moment 'int8'; allowed are 'float32' and 'bfloat16'"):
        optim.AdamW(optim.Schedule(base=1.0), first_moment="int8")
