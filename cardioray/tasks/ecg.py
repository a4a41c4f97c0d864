"""Task `ecg`: scar of an infarction and a low ejection fraction, from the picture of an ECG.

The multi-task ECG system (Boribalburephan et al., Scientific Reports 2024,
doi:10.1038/s41598-024-58131-6): one page in, two questions out, with what the chart says or
without. Its single-task and 1-D variants are settings of the same task.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from cardioray.config import config
from cardioray.data.augment import Augment, AugmentConfig
from cardioray.data.decoding import DecodedSample
from cardioray.data.ecg import PICTURE, SIGNALS, EcgDecoder, EcgPreprocess, layout_name
from cardioray.data.ecg_layouts import CHART, chart_of_row, read_ecg_manifest
from cardioray.data.manifest import Manifest
from cardioray.data.splits import SplitConfig
from cardioray.models.ecg import EcgModel, EcgModelConfig, signals_changed
from cardioray.models.imputation import MISSING, fit_imputation
from cardioray.registry import Registry
from cardioray.targets import BinaryTarget, EfCutOff, RegressionTarget
from cardioray.tasks.backbone import BackboneTask
from cardioray.tasks.base import (
    TASKS,
    Batch,
    LabelStatistics,
    Monitor,
    OperatingConfig,
    Outputs,
    Tables,
    Task,
    binary_loss,
)

SCAR = BinaryTarget(
    name="scar",
    positive="scar",
    negative="no scar",
    label_column="scar",
    positive_aliases=("positive",),
    negative_aliases=("negative",),
)
LVEF = "lvef"
HeadName = Literal["scar", "lvef"]
_CHART = "chart"

# Variants of the published comparison, as the settings that make them.
VARIANTS: Registry[tuple[str, ...]] = Registry("variant")
VARIANTS.add("scar", ("heads=[scar]",))
VARIANTS.add("lvef", ("heads=[lvef]",))
VARIANTS.add("multi", ())
VARIANTS.add("scar-chart", ("heads=[scar]", "model.chart=birnn"))
VARIANTS.add("lvef-chart", ("heads=[lvef]", "model.chart=birnn"))
VARIANTS.add("multi-chart", ("model.chart=birnn",))
VARIANTS.add("multi-chart-mlp", ("model.chart=mlp",))
VARIANTS.add("scar-1d", ("heads=[scar]", "model.sees=signals"))
VARIANTS.add("lvef-1d", ("heads=[lvef]", "model.sees=signals"))
VARIANTS.add("multi-1d", ("model.sees=signals",))
VARIANTS.add("multi-1d-chart", ("model.sees=signals", "model.chart=birnn"))


@config
class EcgLoss:
    """The loss of the heads.

    Attributes:
        scar_weight: share of the scar head where both are learned; the other one has the rest.
        class_weights: weigh classes by total / (2 N_class) of the training rows.
        label_smoothing: share of a label spread evenly over both classes.
    """

    scar_weight: float = Field(default=0.7, gt=0, lt=1)
    class_weights: bool = True
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


@config
class SignalAugmentConfig:
    """Random changes of signals during training.

    Attributes:
        gain: largest relative change of the gain, the same for all leads.
        shift_s: largest shift along time, the same for all leads.
        noise_mv: standard deviation of noise, drawn up to this for each ECG.
        lead_dropout: share of leads that are blanked.
    """

    gain: float = Field(default=0.1, ge=0, lt=1)
    shift_s: float = Field(default=0.1, ge=0, lt=1)
    noise_mv: float = Field(default=0.02, ge=0)
    lead_dropout: float = Field(default=0.05, ge=0, lt=1)


@config
class EcgSettings:
    """Settings of `ecg`.

    Attributes:
        heads: the questions; the first one is the headline.
        lvef: which ejection fractions count as low.
        formats: printers' formats that take part, where the table has `ecg_format`; () for all.
        drop_imputed: leave out rows whose labels were guessed (`impute` 1).
        preprocess: from the file to the canonical page and signals; travels with the bundle.
        model: backbone, chart, starting weights.
        augment: random changes of pictures during training.
        augment_signals: random changes of signals.
        loss: weights of heads and classes.
        split: how patients are divided.
        operating: threshold rule, calibration and conformal set.
    """

    heads: tuple[HeadName, ...] = ("scar", "lvef")
    lvef: EfCutOff = EfCutOff(value=50.0)
    formats: tuple[str, ...] = ()
    drop_imputed: bool = False
    preprocess: EcgPreprocess = EcgPreprocess()
    model: EcgModelConfig = EcgModelConfig()
    augment: AugmentConfig = AugmentConfig(
        rotation_degrees=1.0, translate=0.02, zoom=0.05, contrast=0.2, brightness=0.05
    )
    augment_signals: SignalAugmentConfig = SignalAugmentConfig()
    loss: EcgLoss = EcgLoss()
    split: SplitConfig = SplitConfig()
    operating: OperatingConfig = OperatingConfig()

    def __post_init__(self) -> None:
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError("heads are different ones of scar and lvef.")


@TASKS.register("ecg")
class EcgTask(BackboneTask):
    """Scar and low ejection fraction from a 12-lead ECG on paper."""

    name: ClassVar[str] = "ecg"
    title: ClassVar[str] = "Scar and low ejection fraction from a 12-lead ECG"
    intended_use: ClassVar[str] = (
        "Research: whether an ECG suggests a myocardial scar or a low ejection fraction, which an "
        "MRI or an echo would tell. Not for clinical use."
    )
    settings_type: ClassVar[type] = EcgSettings
    example: ClassVar[str] = 'predictor.predict(["ecg.pdf"])'
    measures_pixels: ClassVar[bool] = True
    shards_kind: ClassVar[str] = "ecgs"
    variants: ClassVar[Registry[tuple[str, ...]]] = VARIANTS
    settings: EcgSettings

    @functools.cached_property
    def _augment(self) -> Augment:
        return Augment(self.settings.augment)

    @functools.cached_property
    def _targets(self) -> tuple[BinaryTarget, ...]:
        known = {"scar": SCAR, "lvef": self.settings.lvef.target(LVEF, LVEF)}
        return tuple(known[name] for name in self.settings.heads)

    @property
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """The questions."""
        return self._targets

    @property
    def monitor(self) -> Monitor:
        """Mean AUC of the heads over validation studies."""
        return Monitor(name="val_auc", mode="max")

    @property
    def modality(self) -> str:
        """Electrocardiography."""
        return "ECG"

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """A manifest of ECGs, or the hospital's table; see `read_ecg_manifest`."""
        manifest = read_ecg_manifest(
            data,
            self.targets,
            patient_from=patient_from,
            drop_imputed=self.settings.drop_imputed,
        )
        taken = self.takes_part(manifest.table)
        if not taken.any():
            found = ", ".join(sorted(set(manifest.table["ecg_format"].astype(str))))
            raise ValueError(
                f"No row is of format {' or '.join(self.settings.formats)}; there are {found}."
            )
        return manifest

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """ECGs of the chosen formats, where the table names formats."""
        formats = [name.lower() for name in self.settings.formats]
        if not formats or "ecg_format" not in samples:
            return super().takes_part(samples)
        return samples["ecg_format"].astype(str).str.lower().isin(formats).to_numpy(bool)

    @property
    def decoder(self) -> EcgDecoder:
        """From a page or a record to the canonical picture and twelve signals."""
        return EcgDecoder(preprocess=self.settings.preprocess)

    @property
    def _seen(self) -> str:
        return PICTURE if self.settings.model.sees == "picture" else SIGNALS

    @property
    def charted(self) -> bool:
        """Whether the chart takes part."""
        return self.settings.model.chart != "none"

    @property
    def columns(self) -> tuple[str, ...]:
        """The page or the signals, and the chart where it takes part."""
        return (self._seen, _CHART) if self.charted else (self._seen,)

    @property
    def stored(self) -> tuple[str, ...]:
        """The page or the signals."""
        return (self._seen,)

    @property
    def carried(self) -> tuple[str, ...]:
        """What the chart says, where it takes part."""
        return CHART if self.charted else ()

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """The page or the signals, and charts as bytes (B, 6), where it takes part."""
        seen = batch[self._seen]
        return (seen, coded_chart([batch[name] for name in CHART])) if self.charted else (seen,)

    def facts_of_row(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Age and risk factors, where the chart takes part."""
        return chart_of_row(row) if self.charted else {}

    def input_shapes(
        self, stored: Mapping[str, Sequence[int] | None]
    ) -> dict[str, tuple[int, ...]]:
        """The page or the signals, and six numbers of a chart."""
        shapes = {self._seen: tuple(stored[self._seen] or ())}
        return shapes | ({_CHART: (len(CHART),)} if self.charted else {})

    def pictures(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """The page; of signals, their first bytes as a grey picture, leads from top to bottom."""
        if self._seen == PICTURE:
            return np.asarray(arrays[PICTURE])
        coded = arrays[SIGNALS].astype(np.int32)
        steps = coded[..., 0] * 256 + coded[..., 1] - 32768
        grey = np.clip(128 + steps / 32, 0, 255).astype(np.uint8)  # 4 mV either way
        return np.asarray(np.repeat(grey[..., None], 16, axis=1))

    @property
    def input_channels(self) -> int:
        """One of a page, twelve of signals."""
        return self.settings.model.channels

    def build_model(self) -> EcgModel:
        """Backbone, chart and heads."""
        return EcgModel(self.settings.model, tuple(target.name for target in self.targets))

    def initialise(self, model: nn.Module, statistics: LabelStatistics) -> None:
        """Grey levels of training pages, and what fills in charts."""
        assert isinstance(model, EcgModel)
        if self._seen == PICTURE:
            model.initialise(statistics.pixel_mean[0], statistics.pixel_std[0])
        if statistics.imputation is not None:
            assert model.imputer is not None
            model.imputer.load(statistics.imputation)

    def label_statistics(
        self,
        labels: Mapping[str, NDArray[np.float32]],
        carried: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> LabelStatistics:
        """Class weights, and what training charts tell of missing numbers."""
        found = super().label_statistics(labels, carried)
        if not self.charted:
            return found
        assert carried is not None
        table = np.stack([carried[name] for name in CHART], axis=1).astype(float)
        table[:, 0] /= 100.0
        if not np.isfinite(table).any(axis=0).all():
            missing = [
                n for n, k in zip(CHART, np.isfinite(table).any(axis=0), strict=True) if not k
            ]
            raise ValueError(
                f"model.chart={self.settings.model.chart} needs age and risk factors, and of no "
                f"training patient there is {', '.join(missing)}. Add the column(s), or set "
                "model.chart=none."
            )
        flags = np.array([name != "age" for name in CHART])
        return replace(found, imputation=fit_imputation(table, flags, seed=42))

    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Small moves and changes of light of pages; gain, shift and noise of signals."""
        if self._seen == SIGNALS:
            settings = self.settings.augment_signals
            changed = signals_changed(
                batch[SIGNALS],
                seed,
                gain=settings.gain,
                shift=round(settings.shift_s * self.settings.preprocess.rate_hz),
                noise_mv=settings.noise_mv,
                lead_dropout=settings.lead_dropout,
            )
            return {**batch, SIGNALS: changed}
        floats = batch[PICTURE].permute(0, 3, 1, 2).float() / 255.0
        return {**batch, PICTURE: self._augment(floats, seed=seed).permute(0, 2, 3, 1)}

    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """Weighted cross-entropy of each head, added up by the weights of the heads."""
        shares = {"scar": self.settings.loss.scar_weight, LVEF: 1 - self.settings.loss.scar_weight}
        whole = sum(shares[target.name] for target in self._targets)
        settings = self.settings.loss
        losses = [
            shares[target.name]
            / whole
            * binary_loss(
                outputs[target.name],
                batch[target.name],
                weights=statistics.class_weights[target.name] if settings.class_weights else None,
                smoothing=settings.label_smoothing,
            )
            for target in self._targets
        ]
        return torch.stack(losses).sum()

    def details(
        self, samples: Sequence[DecodedSample], windows: Mapping[str, Sequence[NDArray[np.float32]]]
    ) -> dict[str, Any]:
        """How each page was read: its layout, gain and paper speed."""
        return {
            "pages": [
                {
                    "layout": layout_name(sample),
                    "mm_per_mv": sample.facts["mm_per_mv"],
                    "mm_per_s": sample.facts["mm_per_s"],
                }
                for sample in samples
            ]
        }

    def doubts(self, samples: Sequence[DecodedSample]) -> list[str]:
        """What was assumed when the pages were read."""
        return list(dict.fromkeys(note for sample in samples for note in sample.notes))

    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """Probability of each positive class."""
        return {target.name: torch.sigmoid(outputs[target.name]) for target in self.targets}

    def validation_figures(self, tables: Tables) -> dict[str, float]:
        """Log loss and accuracy of the headline, and the mean AUC of all heads."""
        figures = super().validation_figures(tables)
        aucs = [self._headed(name, tables)["val_auc"] for name in self.settings.heads[1:]]
        known = [auc for auc in (figures["val_auc"], *aucs) if np.isfinite(auc)]
        return figures | {"val_auc": float(np.mean(known)) if known else float("nan")}

    def _headed(self, name: HeadName, tables: Tables) -> dict[str, float]:
        """The figures of another head than the first one."""
        alone = EcgTask(replace(self.settings, heads=(name,)))
        if not (tables.predictions["head"] == name).any():
            return {"val_auc": float("nan")}
        return Task.validation_figures(alone, tables)


def coded_chart(numbers: Sequence[Any]) -> Any:
    """Age and flags as bytes (B, 6), `MISSING` where not known; of tensors or arrays (B,) each."""
    if isinstance(numbers[0], Tensor):
        table = torch.stack(list(numbers), dim=1)
        return torch.where(torch.isnan(table), float(MISSING), table.round()).to(torch.uint8)
    stacked = np.stack([np.asarray(each, np.float32) for each in numbers], axis=1)
    return np.where(np.isnan(stacked), MISSING, np.round(stacked)).astype(np.uint8)
