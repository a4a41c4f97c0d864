"""What bundles of key frames answer in Python: heads on features, and networks end to end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from served import encoded
from tiny_bundles import run_example
from tiny_keyframes import QUIET, built, cine, dicoms, frames

from cardioray.bundle import Bundle
from cardioray.data.image import UnreadableImage
from cardioray.data.segment import IMAGE
from cardioray.data.shards import ShardSet
from cardioray.evaluation.uncertainty import REVIEW_WRONG_SIDE, wrong_side_probability
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.keyframes import KeyframePredictor
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.keyframes import KeyframeModel
from cardioray.tasks.keyframe_heat import trained_heat
from cardioray.tuning.keyframe_bundle import train_keyframes

Prepared = tuple[Path, ShardSet]


def opened(content: bytes) -> NDArray[np.uint8]:
    """A PNG as an array."""
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.ray
@pytest.mark.slow
class TestBundle:
    def test_the_same_call_again_gives_the_finished_bundle(
        self, keyframe_heads: Bundle, keyframe_shards: Prepared
    ) -> None:
        folder, shards = keyframe_shards
        again = train_keyframes(built(), shards, str(folder / "runs"), name="heads")
        assert again.identity == keyframe_heads.identity

    def test_what_the_report_counts_is_in_the_bundle(self, keyframe_heads: Bundle) -> None:
        models = keyframe_heads.json("metrics.json")["keyframes"]["models"]
        heads = {f"{f}/{h}" for f in ("ED", "ES", "together") for h in ("gp", "mlp", "mlp_class")}
        assert set(models) == {"ensemble", "constant mean", *heads}
        ensemble = models["ensemble"]["number"]["mae"]["value"]
        assert ensemble == pytest.approx(
            keyframe_heads.json("metrics.json")["targets"]["ef"]["per_study"]["mae"]["value"],
            abs=1e-6,
        )

    def test_an_answer_is_that_of_the_table(
        self,
        keyframe_predictor: KeyframePredictor,
        keyframe_heads: Bundle,
        keyframe_shards: Prepared,
    ) -> None:
        folder, _ = keyframe_shards
        table = pd.read_parquet(keyframe_heads.path / "predictions.parquet")
        row = table[(table["head"] == "ef") & (table["split"] == "test")].iloc[0]
        place = folder / "camus" / row["patient_id"]
        files = [place / f"{row['patient_id']}_4CH_{phase}.nii.gz" for phase in ("ED", "ES")]
        answer = keyframe_predictor.predict(files, views=["ED", "ES"])
        assert answer["ef"]["value"] == pytest.approx(row["score"], abs=0.05)
        low, high = answer["ef"]["intervals"]["80"]
        assert low < answer["ef"]["value"] < high
        assert answer["ef"]["sd"] > 0
        assert 0 <= answer["ef_le_45"]["probability"] <= 1

    def test_the_example_of_its_card_runs(self, keyframe_heads: Bundle, tmp_path: Path) -> None:
        rng = np.random.default_rng(5)
        for name, width in (("ed", 44.0), ("es", 32.0)):
            Image.fromarray(tiny.echo(tiny.heart(80.0, width), rng)).save(tmp_path / f"{name}.png")
        assert run_example(keyframe_heads.path, tmp_path)["frames"] == 2

    def test_the_order_of_frames_does_not_matter(
        self, keyframe_predictor: KeyframePredictor
    ) -> None:
        ed, es = frames()
        first = keyframe_predictor.predict([ed, es], views=["ED", "A4C-ES"])
        second = keyframe_predictor.predict([es, ed], views=["es", "4CH-ED"])
        assert first["ef"] == second["ef"]

    def test_a_frame_alone_is_answered_by_its_heads_with_a_warning(
        self, keyframe_predictor: KeyframePredictor
    ) -> None:
        answer = keyframe_predictor.predict(frames()[:1], views=["ED"])
        assert answer["heads"]["ES/gp"]["value"] is None
        assert answer["heads"]["ED/gp"]["value"] is not None
        assert any("No frame ES was given" in text for text in answer["warnings"])

    def test_a_cine_is_answered_by_its_key_frames(
        self, keyframe_predictor: KeyframePredictor
    ) -> None:
        rng = np.random.default_rng(1)
        widths = np.linspace(44.0, 31.0, 9)
        cine = np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths])
        answer = keyframe_predictor.predict(tiny.nifti(cine), key_frames=(0, 8))
        single = keyframe_predictor.predict(
            [tiny.nifti(cine[0]), tiny.nifti(cine[8])], views=["ED", "ES"]
        )
        assert answer["ef"]["value"] == pytest.approx(single["ef"]["value"], abs=0.5)

    def test_a_table_of_cines_is_answered_by_the_key_frames_that_it_names(
        self, keyframe_heads: Bundle, keyframe_predictor: KeyframePredictor, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(1)
        widths = np.linspace(44.0, 31.0, 9)
        cine = tiny.nifti(np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths]))
        (tmp_path / "cine.nii.gz").write_bytes(cine)
        table = tmp_path / "keyframes.csv"
        table.write_text("source,ed_frame,es_frame\ncine.nii.gz,0,8\n")
        out = str(tmp_path / "answers.csv")
        found = predict_files(
            str(keyframe_heads.place),
            [str(table)],
            out,
            console=Console(quiet=True),
            precision="fp32",
        )
        expected = keyframe_predictor.predict(cine, key_frames=(0, 8))
        assert found["ef_value"].tolist() == pytest.approx([expected["ef"]["value"]], abs=1e-3)
        assert found["frames"].tolist() == [3]

    @pytest.mark.parametrize(
        ("views", "said"),
        [
            (["ED", "ED"], "Several frames were sent as ED"),
            (["late", "ES"], "'late' is none of these"),
            (None, "Say which frame each file shows"),
            (["MID", "MID"], "Several"),
        ],
    )
    def test_frames_that_are_not_known_are_refused(
        self, keyframe_predictor: KeyframePredictor, views: list[str] | None, said: str
    ) -> None:
        with pytest.raises(UnreadableImage, match=said):
            keyframe_predictor.predict(frames(), views=views)

    def test_a_cine_in_the_place_of_a_frame_is_refused(
        self, keyframe_predictor: KeyframePredictor
    ) -> None:
        cine = np.stack([tiny.echo(tiny.heart(80.0, 40.0), np.random.default_rng(0))] * 3)
        with pytest.raises(UnreadableImage, match="axis of time"):
            keyframe_predictor.predict(tiny.nifti(cine), views=["ED"] * 1)
        with pytest.raises(UnreadableImage, match=r"the file has 3 frame\(s\)"):
            keyframe_predictor.predict(tiny.nifti(cine), key_frames=(0, 7))
        with pytest.raises(UnreadableImage, match="file is a single frame"):
            keyframe_predictor.predict(encoded(cine[0]), key_frames=(0, 2))
        with pytest.raises(UnreadableImage, match="sent as the frame ED"):
            keyframe_predictor.predict(tiny.nifti(cine), views=["ED"], key_frames=(0, 2))
        with pytest.raises(ValueError, match="one cine, and there are 2 items"):
            keyframe_predictor.predict([tiny.nifti(cine)] * 2, key_frames=(0, 2))

    @pytest.mark.parametrize(
        ("views", "tags", "said"),
        [
            (["A2C-ED", "A2C-ES"], {}, "sent as one of A2C, and the model has learned from A4C"),
            (["A4C-ED", "2CH-ES"], {}, "sent as one of A2C"),
            (["ED", "ES"], {"PatientID": "P2"}, "several patients"),
            (["ED", "ES"], {"StudyInstanceUID": "1.2.3"}, "several examinations"),
            (["MID"], {}, "None of the frames MID"),
        ],
    )
    def test_frames_that_do_not_belong_together_are_refused_before_the_network_runs(
        self,
        keyframe_predictor: KeyframePredictor,
        views: list[str],
        tags: dict[str, str],
        said: str,
    ) -> None:
        files = dicoms(**tags)[: len(views)]
        samples = keyframe_predictor.read(files, views)
        with pytest.raises(UnreadableImage, match=said):
            keyframe_predictor.check(samples)
        with pytest.raises(UnreadableImage, match=said):
            keyframe_predictor.predict(files, views=views)
        keyframe_predictor.check(keyframe_predictor.read(dicoms(), ["4ch ED", "A4C_ES"]))

    def test_intervals_and_review_are_of_the_number_that_is_answered(
        self, keyframe_predictor: KeyframePredictor
    ) -> None:
        answer = keyframe_predictor.predict(frames(), views=["ED", "ES"])
        for low, high in answer["ef"]["intervals"].values():
            assert 0 <= low <= answer["ef"]["value"] <= high <= 100
        [doubt] = wrong_side_probability([answer["ef"]["value"]], [answer["ef"]["sd"]], 45.0)
        assert answer["review"]["probability_wrong_side"] == pytest.approx(doubt)
        near = any("near the cut-off 45" in reason for reason in answer["review"]["reasons"])
        assert near == (doubt > REVIEW_WRONG_SIDE)

    def test_heads_that_do_not_belong_together_are_refused(self, keyframe_predictor: Any) -> None:
        from cardioray.tasks.keyframe_heads import FittedHeads

        record = keyframe_predictor.bundle.json("heads.json")
        with pytest.raises(ValueError, match="gaussian process|Gaussian process|misses|missing"):
            FittedHeads.read(record, {})


@pytest.mark.ray
@pytest.mark.slow
class TestEndToEnd:
    def test_it_answers_with_the_mean_over_frames(
        self, network_predictor: KeyframePredictor
    ) -> None:
        files = frames()
        answer = network_predictor.predict(files, views=["ED", "ES"])
        alone = [
            network_predictor.predict(f, views=[v])
            for f, v in zip(files, ("ED", "ES"), strict=True)
        ]
        mean = np.mean([single["ef"]["value"] for single in alone])
        assert answer["ef"]["value"] == pytest.approx(mean, abs=1e-3)
        assert "heads" not in answer

    def test_it_refuses_what_heads_refuse(self, network_predictor: KeyframePredictor) -> None:
        with pytest.raises(UnreadableImage, match="several patients"):
            network_predictor.predict(dicoms(PatientID="P2"), views=["ED", "ES"])
        with pytest.raises(UnreadableImage, match="learned from A4C"):
            network_predictor.predict(frames(), views=["A2C-ED", "A2C-ES"])
        with pytest.raises(UnreadableImage, match="key_frames"):
            network_predictor.predict(tiny.nifti(cine(9)), views=["A4C"])

    def test_its_heat_is_that_of_its_number(self, network_predictor: KeyframePredictor) -> None:
        [sample] = network_predictor.read(frames()[0], ["ED"])
        overlay = network_predictor.overlay(sample, "gradcam++")
        assert opened(overlay.content).shape == (*tiny.SHAPE, 3)
        with pytest.raises(NoFeatureMap, match="no scorecam of a key frame"):
            network_predictor.overlay(sample, "scorecam")
        model, picture = network_predictor.model, sample.arrays[IMAGE]
        assert isinstance(model, KeyframeModel)
        assert model.head is not None
        value = network_predictor.predict(frames()[0], views=["ED"])["ef"]["value"]
        tops = []
        for cutoff, sign in ((value - 1, 1), (value + 1, -1)):
            with torch.inference_mode():
                maps = model.feature_map(torch.tensor(picture[None]))[0].numpy()
                weights = sign * model.head.weight[0].numpy()
            expected = np.maximum(np.tensordot(weights, maps, 1), 0)
            heat = trained_heat(model, network_predictor._statistics, cutoff, picture, "gradcam")
            tops.append(expected.max())
            np.testing.assert_allclose(heat, expected / (tops[-1] or 1), atol=1e-4)
        assert max(tops) > 0

    def test_only_frames_that_it_is_for_are_scored(
        self, keyframe_network: Bundle, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        folder, _ = keyframe_shards
        again = evaluate_bundle(str(keyframe_network.path), str(folder / "camus"), console=QUIET)[
            "ef"
        ]
        held = keyframe_network.json("metrics.json")["targets"]["ef"]["per_study"]["mae"]["value"]
        assert again.per_study.values["mae"].value == pytest.approx(held, abs=1e-3)
        other = tiny.write_camus(tmp_path / "other", 8, seed=9)
        found = evaluate_bundle(str(keyframe_network.path), str(other), console=QUIET)["ef"]
        # Two frames of the view that the model is for, of each patient.
        assert (found.studies, found.frames) == (8, 16)
        assert any("16 of 32 rows are of other views" in note for note in found.notes)
