"""Dense heads on features: what they learn, when they stop, and that arrays say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from sklearn.metrics import roc_auc_score
from torch import nn

from cardioray.models.feature_mlp import FeatureMlp, MlpHeadConfig, make_network

SMALL = MlpHeadConfig(hidden=(32, 16), epochs=40, patience=8)


def table(rows: int, seed: int, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scale, and a number that bends with the first two."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width))
    ef = 50 + 10 * np.abs(features[:, 0]) - 6 * features[:, 1] + rng.normal(size=rows)
    return (features * np.logspace(-2, 2, width)).astype(np.float32), ef


def fitted(kind: str, settings: MlpHeadConfig = SMALL, cutoff: float = 58.0) -> FeatureMlp:
    (x, ef), (held, held_ef) = table(300, 0), table(100, 1)
    if kind == "classification":
        ef, held_ef = (ef > cutoff).astype(float), (held_ef > cutoff).astype(float)
    return FeatureMlp.fit(kind, x, ef, held, held_ef, settings)  # type: ignore[arg-type]


def test_a_regression_learns_what_a_line_cannot() -> None:
    head = fitted("regression")
    features, ef = table(200, 2)
    errors = head.predict(features) - ef
    assert np.sqrt((errors**2).mean()) < 0.5 * ef.std()
    assert 0.6 < head.residual_sd / np.sqrt((errors**2).mean()) < 1.4


def test_a_classification_gives_probabilities() -> None:
    head = fitted("classification")
    features, ef = table(200, 2)
    p = head.predict(features)
    assert ((p >= 0) & (p <= 1)).all()
    assert roc_auc_score(ef > 58, p) > 0.85
    assert np.isnan(head.residual_sd)


def test_class_weights_hold_for_a_rare_class() -> None:
    """With balanced weights the mean probability is near one half, whatever the share."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 3)), (np.arange(400) < 40).astype(float)
    head = FeatureMlp.fit(
        "classification", x, y, x, y, MlpHeadConfig(hidden=(), dropout=(), epochs=60)
    )
    assert head.predict(x).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_numpy_says_what_torch_says(kind: str) -> None:
    head = fitted(kind)
    network = make_network(10, SMALL).eval()
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, weight, bias in zip(layers, head.weights, head.biases, strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    features, _ = table(50, 3)
    inputs = torch.from_numpy(head.space.apply(features).astype(np.float32))
    with torch.no_grad():
        outputs = network(inputs)[:, 0].double()
    expected = outputs.sigmoid() if kind == "classification" else head.centre + head.scale * outputs
    np.testing.assert_allclose(head.predict(features), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_arrays_bring_the_same_head_back(kind: str) -> None:
    head = fitted(kind)
    again = FeatureMlp.from_arrays(load(save(head.to_arrays())))
    features, _ = table(20, 3)
    np.testing.assert_array_equal(again.predict(features), head.predict(features))
    assert again.kind == kind
    assert again.best_epoch == head.best_epoch
    np.testing.assert_array_equal(again.losses, head.losses)
    arrays = head.to_arrays()
    del arrays["layers.1.bias"]
    with pytest.raises(ValueError, match=r"missing or not known: layers\.1\.bias"):
        FeatureMlp.from_arrays(arrays)


def test_weights_of_the_best_epoch_are_kept_and_training_stops() -> None:
    settings = MlpHeadConfig(hidden=(64,), dropout=(0.0,), epochs=200, patience=5)
    (x, ef), (held, held_ef) = table(40, 0), table(100, 1)
    head = FeatureMlp.fit("regression", x, ef, held, held_ef, settings)
    losses = head.losses[:, 1]
    assert head.best_epoch == 1 + int(np.argmin(losses))
    assert len(losses) == head.best_epoch + 5 < 200
    mse = float(((head.predict(held) - held_ef) ** 2).mean())
    assert mse == pytest.approx(losses.min() * head.scale**2, rel=1e-4)
    assert head.residual_sd == pytest.approx(np.sqrt(mse), rel=1e-4)


def test_the_seed_decides_and_leaves_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    features, _ = table(20, 3)
    first, again = fitted("regression"), fitted("regression")
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict(features), again.predict(features))
    other = fitted("regression", MlpHeadConfig(hidden=(32, 16), epochs=40, patience=8, seed=1))
    assert not np.allclose(first.predict(features), other.predict(features))


def test_neither_order_of_rows_nor_units_matter() -> None:
    (x, ef), (held, held_ef) = table(300, 0), table(100, 1)
    features, _ = table(20, 3)
    expected = FeatureMlp.fit("regression", x, ef, held, held_ef, SMALL).predict(features)
    order, other = np.random.default_rng(0).permutation(300), np.random.default_rng(1)
    held_order = other.permutation(100)
    shuffled = FeatureMlp.fit(
        "regression", x[order], ef[order], held[held_order], held_ef[held_order], SMALL
    )
    np.testing.assert_allclose(shuffled.predict(features), expected, atol=0.05)
    scaled = FeatureMlp.fit("regression", 8 * x, ef / 4, 8 * held, held_ef / 4, SMALL)
    np.testing.assert_allclose(4 * scaled.predict(8 * features), expected, atol=0.05)


def test_the_default_is_the_published_head() -> None:
    network = make_network(2048, MlpHeadConfig())
    assert sum(p.numel() for p in network.parameters()) == 1_180_673
    assert [m.p for m in network if isinstance(m, nn.Dropout)] == [0.3, 0.2]


def test_what_cannot_be_trained_is_refused() -> None:
    x, ef = table(20, 0)
    with pytest.raises(ValueError, match="Unknown kind of head 'ranking'"):
        FeatureMlp.fit("ranking", x, ef, x, ef)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels of the training rows are equal"):
        FeatureMlp.fit("classification", x, np.ones(20), x, np.ones(20))
    with pytest.raises(ValueError, match="are 0 or 1"):
        FeatureMlp.fit("classification", x, ef, x, ef)
    with pytest.raises(ValueError, match="validation rows are not finite"):
        FeatureMlp.fit("regression", x, ef, x, np.full(20, np.nan))
    with pytest.raises(ValueError, match=r"\(19,\) labels for 20 training rows"):
        FeatureMlp.fit("regression", x, ef[:-1], x, ef)
    with pytest.raises(ValueError, match="one number for each hidden layer"):
        MlpHeadConfig(hidden=(8,))
