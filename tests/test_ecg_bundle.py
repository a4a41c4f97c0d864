"""ECGs from pages to a bundle, and what it answers in Python and over files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_ecgs as ecgs
from PIL import Image
from rich.console import Console
from test_ecg_records import TRUTH, waveform
from tiny_training import training_here

import cardioray
from cardioray.bundle import Bundle
from cardioray.data.ecg_leads import LEADS
from cardioray.data.frames import UnreadableImage
from cardioray.ecgs import EcgPredictor
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.models.backbones import NoFeatureMap
from cardioray.tuning.settings import AshaConfig, CompareConfig
from cardioray.tuning.variants import compare_variants

QUIET = Console(quiet=True)


def predictor_of(bundle: Bundle, **options: str) -> EcgPredictor:
    found = cardioray.load(bundle.path, precision="fp32", **options)
    assert isinstance(found, EcgPredictor)
    return found


@pytest.fixture(scope="module")
def plain(ray_local: None) -> EcgPredictor:
    return predictor_of(ecgs.trained())


@pytest.fixture(scope="module")
def charted(ray_local: None) -> EcgPredictor:
    return predictor_of(ecgs.trained("model.chart=birnn"))


@pytest.fixture(scope="module")
def of_signals(ray_local: None) -> EcgPredictor:
    return predictor_of(ecgs.trained("model.sees=signals", "heads=[lvef]"))


@pytest.mark.ray
@pytest.mark.slow
class TestAnswers:
    def test_each_question_has_the_published_shape(self, plain: EcgPredictor) -> None:
        answer = plain.predict(ecgs.png(ecgs.page()))
        for head, classes in (("scar", ("no scar", "scar")), ("lvef", ("EF>50", "EF<=50"))):
            own = answer[head]
            assert own["class"] == classes[own["prediction"]]
            assert sum(own["probability"].values()) == pytest.approx(1)
            assert set(own["probability"]) == {"negative", "positive"}
            assert (own["probability"]["positive"] >= own["threshold"]) == bool(own["prediction"])
        assert answer["pages"] == [{"layout": "3x4+1", "mm_per_mv": 10.0, "mm_per_s": 25.0}]

    def test_a_recording_and_its_picture_are_read_alike(self, plain: EcgPredictor) -> None:
        recorded = plain.predict(waveform(TRUTH))
        assert set(recorded) == set(plain.predict(ecgs.page()))

    def test_what_is_no_ecg_is_refused(self, plain: EcgPredictor) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3)).astype(np.uint8)
        with pytest.raises(UnreadableImage):
            plain.predict(noise)
        with pytest.raises(UnreadableImage, match="PDF, PNG, JPEG"):
            plain.predict(b"Dear colleague, thank you for referring this patient." * 20)

    def test_runtimes_agree(self, charted: EcgPredictor) -> None:
        assert charted.runtime == "openvino"
        eager = predictor_of(charted.bundle, runtime="torch")
        chart = {"age": 61, "sex": "F"}
        one, other = (p.predict(ecgs.page(), clinical_features=chart) for p in (charted, eager))
        for head in ("scar", "lvef"):
            assert one[head]["probability"] == pytest.approx(other[head]["probability"], abs=1e-3)


@pytest.mark.ray
@pytest.mark.slow
class TestCharts:
    def test_what_the_chart_says_counts_and_gaps_are_filled_in(self, charted: EcgPredictor) -> None:
        page = ecgs.page()
        answers = [
            charted.predict(page, clinical_features=chart)["scar"]["probability"]["positive"]
            for chart in (
                {"age": 40, "female": 1, "dm": 0, "ht": 0, "smoke": 0, "dlp": 0},
                {"age": 90, "female": 0, "dm": 1, "ht": 1, "smoke": 1, "dlp": 1},
                {},
                None,
            )
        ]
        assert answers[0] != answers[1]
        assert answers[2] == answers[3]
        assert all(0 <= value <= 1 for value in answers)

    @pytest.mark.parametrize(
        ("chart", "said"),
        [
            ({"weight": 80}, "Unknown clinical feature 'weight'.*Known: age"),
            ({"age": 190}, "no age in years"),
            ({"smoke": "often"}, "neither 0 or no nor 1 or yes"),
            ({"female": 1, "sex": "M"}, "female is given twice"),
        ],
    )
    def test_what_a_chart_cannot_say_is_refused(
        self, charted: EcgPredictor, chart: dict[str, object], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            charted.predict(ecgs.page(), clinical_features=chart)


@pytest.mark.ray
@pytest.mark.slow
class TestHeat:
    @pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam"])
    def test_heat_lies_over_the_page_as_it_was_sent(
        self, charted: EcgPredictor, method: str
    ) -> None:
        picture = ecgs.page()
        [sample] = charted.read(picture)
        drawn = np.asarray(Image.open(io.BytesIO(charted.overlay(sample, method).content)))
        assert drawn.shape == picture.shape
        for head in ("scar", "lvef"):
            heat = charted.lead_heat(sample, head, method)
            assert set(heat.shares) == set(LEADS)
            assert sum(heat.shares.values()) == pytest.approx(1 if heat.canonical.any() else 0)

    def test_a_head_that_is_not_there_is_named(self, plain: EcgPredictor) -> None:
        [sample] = plain.read(ecgs.page())
        with pytest.raises(ValueError, match="no head 'hcm'; it has scar, lvef"):
            plain.lead_heat(sample, "hcm", "gradcam")

    def test_signals_have_none(self, of_signals: EcgPredictor) -> None:
        [sample] = of_signals.read(ecgs.page())
        with pytest.raises(NoFeatureMap, match="learned from signals"):
            of_signals.overlay(sample, "gradcam")
        assert set(of_signals.predict(ecgs.page())) >= {"lvef"}


@pytest.mark.ray
@pytest.mark.slow
def test_own_data_give_the_figures_of_the_bundle_again(
    charted: EcgPredictor, tmp_path: Path
) -> None:
    folder, _ = ecgs.prepared()
    place = str(charted.bundle.path)
    again = evaluate_bundle(place, str(folder / "ecgs"), out=str(tmp_path), console=QUIET)
    held = charted.bundle.json("metrics.json")["targets"]
    for head in ("scar", "lvef"):
        auc = held[head]["per_study"]["auc"]["value"]
        assert again[head].per_study.values["auc"].value == pytest.approx(auc, abs=1e-6)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert max(written["largest_score_difference_from_the_bundle"].values()) < 1e-3


@pytest.mark.ray
@pytest.mark.slow
def test_files_are_answered_with_their_charts(charted: EcgPredictor, tmp_path: Path) -> None:
    folder, _ = ecgs.prepared()
    table = pd.read_csv(folder / "ecgs" / "manifest.csv").head(3)
    table = table.assign(source=[str(folder / "ecgs" / source) for source in table["source"]])
    table.to_csv(tmp_path / "some.csv", index=False)
    out = str(tmp_path / "answers.csv")
    place = str(charted.bundle.path)
    found = predict_files(place, [str(tmp_path / "some.csv")], out, console=QUIET, precision="fp32")
    for row, (_, chart) in zip(found.to_dict("records"), table.iterrows(), strict=True):
        known = {n: chart[n] for n in ("age", "female", "dm", "ht", "smoke", "dlp")}
        known = {name: value for name, value in known.items() if pd.notna(value)}
        expected = charted.predict(chart["source"], clinical_features=known)
        assert row["scar_probability"] == pytest.approx(
            expected["scar"]["probability"]["positive"], abs=1e-3
        )


@pytest.mark.ray
@pytest.mark.slow
def test_variants_are_compared_question_by_question(ray_local: None, tmp_path: Path) -> None:
    _, shards = ecgs.prepared()
    run = ecgs.built("train.epochs=1", "operating.calibration=platt")
    variants = {"scar": ("heads=[scar]",), "multi-chart": ("model.chart=mlp",)}
    settings = CompareConfig(
        backbones=("resnet10t",), variants=variants, folds=2, asha=AshaConfig(enabled=False)
    )
    with training_here():  # the final models; trials are those of Tune
        result = compare_variants(run, shards, settings, str(tmp_path / "out"))
    names = {
        head: {row.entry.name for row in board.rows} for head, board in result.leaderboards.items()
    }
    beside = {"chart alone (boosted trees)", "all negative"}
    assert names == {"scar": {"scar", "multi-chart"} | beside, "lvef": {"multi-chart"} | beside}
    table = pd.read_csv(tmp_path / "out" / "variants.csv")
    assert set(table["head"]) == {"scar", "lvef"}
    assert (tmp_path / "out" / "lvef" / "leaderboard.html").is_file()
    assert {bundle.name for bundle in result.bundles} <= {"scar", "multi-chart"}
    with pytest.raises(ValueError, match="pass --no-asha"):
        compare_variants(
            run, shards, CompareConfig(backbones=("resnet10t",), variants=variants), str(tmp_path)
        )
