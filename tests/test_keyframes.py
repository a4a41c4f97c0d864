"""Heads on features of key frames: backbones, features, and the table of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_keyframes import built
from tiny_training import training_here

from cardioray.bundle import Bundle
from cardioray.data.reading import take_rows
from cardioray.data.segment import IMAGE
from cardioray.data.shards import ShardSet
from cardioray.keyframes import HeadsPredictor, KeyframePredictor
from cardioray.storage import list_files
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, Fit
from cardioray.training.features import Features, compute_features
from cardioray.training.outcome import read_outcome
from cardioray.training.run import train
from cardioray.training.single import divide
from cardioray.tuning.division import divide as divide_in_folds
from cardioray.tuning.keyframe_bundle import train_keyframes
from cardioray.tuning.keyframe_compare import compare_keyframes
from cardioray.tuning.keyframe_heat import heat_in_structures, summary
from cardioray.tuning.keyframes import Backbones, Fitted, divisions, find_studies
from cardioray.tuning.settings import CompareConfig

Prepared = tuple[Path, ShardSet]


FOLDS = CompareConfig(backbones=("unet-tu-resnet10t",), folds=2, seed=3)


def first_layer(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights of an encoder's first convolution, in a network of either task."""
    return state[min(k for k, v in state.items() if "encoder." in k and v.ndim == 4)]


@pytest.mark.ray
@pytest.mark.slow
class TestFeatures:
    def test_they_are_those_of_a_plain_loop_by_each_network_and_are_computed_once(
        self, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        _, shards = keyframe_shards
        task = built().task
        assert isinstance(task, KeyframeEfTask)
        torch.manual_seed(0)
        model = task.build_model().eval()
        rows = np.sort(shards.samples["row"].to_numpy(np.int64))[:21]
        torch.manual_seed(1)
        other = task.build_model().eval()
        weights = [net.state_dict() for net in (model, other)]
        found, different = compute_features(
            task, weights, shards, rows, str(tmp_path), precision="fp32"
        )
        pictures = torch.from_numpy(take_rows(shards, rows, (IMAGE,))[IMAGE])
        with torch.inference_mode():
            plain = [net.features(pictures).numpy() for net in (model, other)]
        np.testing.assert_allclose(found.values, plain[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(different.values, plain[1], rtol=1e-4, atol=1e-5)
        assert np.abs(plain[0] - plain[1]).max() > 1e-3
        np.testing.assert_array_equal(found.of(rows[::-1]), found.values[::-1])

        before = {path: Path(path).stat().st_mtime_ns for path in list_files(str(tmp_path))}
        again = compute_features(
            task, [*weights[::-1], weights[0]], shards, rows, str(tmp_path), precision="fp32"
        )
        assert {p: Path(p).stat().st_mtime_ns for p in list_files(str(tmp_path))} == before
        for read, computed in zip(again, (different, found, found), strict=True):
            np.testing.assert_array_equal(read.values, computed.values)

    def test_random_weights_are_to_be_asked_for(
        self, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        _, shards = keyframe_shards
        run = built("model.pretrained=hub", "model.backbone=resnet18")
        with pytest.raises(ValueError, match=r"model\.pretrained=none") as caught:
            train_keyframes(run, shards, str(tmp_path))
        assert "model.backbone=unet-resnet18" in str(caught.value)


@pytest.mark.ray
@pytest.mark.slow
def test_a_class_that_hardly_anyone_is_of_is_named(
    keyframe_shards: Prepared, tmp_path: Path
) -> None:
    _, shards = keyframe_shards
    run = built("model.pretrained=outlines", "cut_off.value=5")
    with pytest.raises(ValueError, match="0 of 'EF<=5'"):
        train_keyframes(run, shards, str(tmp_path))
    # Before anything was trained or computed.
    assert list_files(str(tmp_path)) == []


@pytest.mark.ray
@pytest.mark.slow
class TestOutlines:
    """A backbone that learns outlines of the very patients whom heads are fitted to."""

    def test_what_heads_are_weighed_by_is_new_to_the_backbone_too(
        self, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        _, shards = keyframe_shards
        run = built("model.pretrained=outlines", "heads.search=0", "heads.members=[gp]")
        with training_here():
            bundle = train_keyframes(run, shards, str(tmp_path), name="heads")
        outcomes = [
            outcome
            for folder in sorted((tmp_path / "heads" / "encoders").iterdir())
            if (outcome := read_outcome(str(folder))) is not None
        ]
        # One backbone for the bundle, and one for each inner fold, which leaves patients out.
        assert len(outcomes) == 1 + 3
        weights = [first_layer(outcome.weights()) for outcome in outcomes]
        kept = first_layer(load_file(bundle.path / "model.safetensors"))
        assert sum(bool(torch.equal(kept, each)) for each in weights) == 1
        assert len({each.numpy().tobytes() for each in weights}) == len(weights)
        patients, split = shards.samples["patient_id"], divide(run, shards).split
        for outcome in outcomes:
            parts = outcome.tables().parts
            assert parts is not None
            assert not set(parts["patient_id"]) & set(patients[split == "test"])

        # Whoever asks for a backbone of the same patients gets the same one.
        assert isinstance(run.task, KeyframeEfTask)
        studies = find_studies(run.task, shards)
        backbones = Backbones(run, shards, studies, str(tmp_path / "heads"), None)
        again = backbones.weights(set(patients[split != "test"]), "another division")
        assert torch.equal(first_layer(again), kept)
        assert len(list((tmp_path / "heads" / "encoders").glob("lv-seg-*"))) == len(outcomes)

    def test_inner_folds_of_a_comparison_are_its_other_folds(
        self, keyframe_shards: Prepared
    ) -> None:
        # So that the backbone without folds 1 and 2 is that of both.
        _, shards = keyframe_shards
        run = built("split.test=0", "split.train=0.75")
        assert isinstance(run.task, KeyframeEfTask)
        studies = find_studies(run.task, shards)
        settings = CompareConfig(backbones=FOLDS.backbones, folds=4, seed=3)
        folds = dict(enumerate(divide_in_folds(run, shards, settings).folds))
        parts = divisions(
            run.task, shards, studies, {f"fold{k}": fold for k, fold in folds.items()}, seed=0
        )
        patients = studies.table["patient_id"].to_numpy()
        tested = [frozenset(patients[part.test]) for part in parts]
        assert frozenset().union(*tested) == set(patients)
        for part, own in zip(parts, tested, strict=True):
            mine = patients[part.development]
            held = [frozenset(mine[rows]) for _, rows in part.folds]
            assert sorted(held, key=sorted) == sorted(set(tested) - {own}, key=sorted)
            for fitted, rows in part.folds:
                assert not set(mine[fitted]) & set(mine[rows])

    def test_end_to_end_starts_from_outlines_of_its_own_patients(
        self, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        _, shards = keyframe_shards
        run = built(
            "model.pretrained=outlines", "method=end_to_end", "train.epochs=1", "train.batch_size=8"
        )
        split = divide(run, shards).split
        with training_here():  # all but the training that is asked for
            outcome = train(run, shards, split, str(tmp_path), name="all")
        started = json.loads((tmp_path / "all" / "started.json").read_text())
        assert started["starting_weights"] == str(tmp_path / "all-start" / "model.safetensors")
        before = first_layer(load_file(started["starting_weights"]))
        after = first_layer(outcome.weights())
        drawn = first_layer(run.task.build_model().state_dict())
        assert (after - before).abs().mean() < 0.5 * (drawn - before).abs().mean()

    def test_weights_that_have_seen_the_patients_are_refused(
        self, keyframe_heads: Bundle, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        _, shards = keyframe_shards
        run = built(f"model.weights={keyframe_heads.path / 'model.safetensors'}", "split.seed=5")
        with pytest.raises(ValueError, match="of the test patients: their scores would be too"):
            train_keyframes(run, shards, str(tmp_path))
        same = built(f"model.weights={keyframe_heads.path / 'model.safetensors'}")
        with pytest.raises(ValueError, match="patients heads learn from"):
            train_keyframes(same, shards, str(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_every_patient_is_scored_once_by_what_has_not_seen_them(
    keyframe_shards: Prepared, tmp_path: Path
) -> None:
    _, shards = keyframe_shards
    run = built("split.test=0", "split.train=0.75", "heads.search=0", "heads.members=[gp]")
    # Another model, which is off by a point.
    rival = shards.samples.drop_duplicates("study_id")[["study_id", "patient_id", "ef"]]
    rival = rival.rename(columns={"ef": "label"}).assign(split="test", head="ef")
    rival.assign(score=rival["label"] + 1).to_parquet(tmp_path / "other.parquet")
    beside = [f"rival={tmp_path / 'other.parquet'}"]
    found = compare_keyframes(run, shards, FOLDS, str(tmp_path / "heads"), beside=beside)
    table = pd.read_parquet(tmp_path / "heads" / "keyframes.parquet")
    own = table[table["model"] == "ensemble"]
    assert sorted(own["patient_id"]) == sorted(shards.samples["patient_id"].unique())
    assert own["fold"].nunique() == FOLDS.folds
    queue = pd.read_csv(tmp_path / "heads" / "review_queue.csv")
    assert queue["flagged"].any()
    assert not queue["flagged"].all()
    names = [row.model for row in found.report.rows]
    assert names[0] == "ensemble"
    assert names[-1] == "constant mean"
    assert (tmp_path / "heads" / "plots" / "risk_coverage.png").is_file()
    heat = pd.read_csv(tmp_path / "heads" / "heat_shares.csv").set_index(["frame", "place"])
    for frame in ("ED", "ES"):
        whole = heat.loc[frame].loc[["cavity", "myocardium", "atrium", "elsewhere"]]
        assert whole["value"].sum() == pytest.approx(1, abs=1e-6)
        assert (whole["frames"] > 0).all()

    [other] = [row for row in found.report.rows if row.model == "rival"]
    assert other.number["mae"].value == pytest.approx(1, abs=1e-4)
    assert other.studies == len(own)
    assert other.against is not None
    mae = found.report.rows[0].number["mae"].value
    assert other.against.difference.value == pytest.approx(mae - 1, abs=1e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_a_backbone_without_heat_is_named_in_the_log(
    keyframe_shards: Prepared,
    keyframe_predictor: KeyframePredictor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, shards = keyframe_shards
    run = built("model.backbone=mobilenetv3_small_050")
    assert isinstance(run.task, KeyframeEfTask)
    assert isinstance(keyframe_predictor, HeadsPredictor)
    studies = find_studies(run.task, shards)
    everyone = np.ones(len(studies.table), bool)
    none, some = np.full((len(everyone), 1), np.nan), np.full(len(everyone), np.nan)
    answers = Answers(("ED/gp",), none, none, none, some, some, some)
    fitted = Fitted(
        fit=Fit(keyframe_predictor.heads, answers),
        weights=run.task.build_model().state_dict(),
        development=~everyone,
        test=everyone,
        answers=answers,
        features=Features(np.zeros(0, np.int64), np.zeros((0, 1), np.float32)),
    )
    assert heat_in_structures(run, shards, studies, {"final": fitted}).empty
    assert "no averages of a feature map" in caplog.text


def test_shares_of_structures_that_were_not_outlined_count_for_nothing() -> None:
    names = ["a", "b", "c"]
    shares = pd.DataFrame(
        {
            **{"frame": "ED", "study_id": names, "patient_id": names},
            "cavity": [0.2, 0.4, 0.6],
            "myocardium": [0.5, np.nan, np.nan],
            "atrium": np.nan,
        }
    )
    found = summary(shares, seed=0).set_index("place")
    assert found["value"].to_dict() == pytest.approx({"cavity": 0.4, "myocardium": 0.5})
    assert found["frames"].to_dict() == {"cavity": 3, "myocardium": 1}
