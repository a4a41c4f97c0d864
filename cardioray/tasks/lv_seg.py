"""Task `lv-seg`: outlines of the left ventricle in apical views, and the ejection fraction of them.

EchoEF-Net's question: a segmentation of CAMUS frames, volumes by discs, calibrated by patient.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from cardioray.clinical.number_calibration import NUMBER_CALIBRATIONS
from cardioray.clinical.volumes import MethodName, Volumes
from cardioray.config import config
from cardioray.data.keyframe_layouts import OUTLINED
from cardioray.data.label_maps import STRUCTURES, CleanUp
from cardioray.data.manifest import Manifest
from cardioray.data.segment import (
    IMAGE,
    MASK,
    REFERENCE,
    SegmentDecoder,
    SegmentPreprocess,
)
from cardioray.data.segment_augment import SegmentAugmentConfig, augment_segments, draw_windows
from cardioray.data.segment_layouts import PHASES, read_segment_manifest
from cardioray.data.splits import SplitConfig
from cardioray.evaluation.predictions import MEASURED_VIEWS
from cardioray.models.segmentation import (
    MASKS,
    SEGMENTERS,
    SegmentModel,
    SegmentModelConfig,
    load_segment_weights,
    segment_starting_weights,
    segmenter_info,
)
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import (
    TASKS,
    Batch,
    LabelStatistics,
    Monitor,
    OperatingConfig,
    Outputs,
    ScoredRows,
    Tables,
    Task,
    freeze_part,
)
from cardioray.tasks.outline_tables import (
    GEOMETRY,
    PREDICTED,
    SPACING,
    frame_table,
    in_mm,
    joined_views,
    measure_frame,
    pixel_doubts,
    stated_spacing,
    study_volumes,
)
from cardioray.tasks.outline_tables import REFERENCE as OF_REFERENCES

log = logging.getLogger(__name__)

StructureName = Literal["cavity", "myocardium", "atrium"]

EF_TARGET = RegressionTarget(
    name="ef", value_column="ef", unit="%", low=0.0, high=100.0, cutoffs=(40.0, 50.0)
)
EDV_TARGET = RegressionTarget(name="edv", value_column="edv_ml", unit="ml", low=0.0)
ESV_TARGET = RegressionTarget(name="esv", value_column="esv_ml", unit="ml", low=0.0)
# The EF that the reference label maps give, as a head of its own beside the network's.
OF_REFERENCE = "of_reference"

# Of `draw_windows`, beside the seed of the other changes to a batch.
_WINDOW_SEED = 1


@config
class SegmentLoss:
    """The loss over all pixels.

    Attributes:
        cross_entropy: weight of the cross-entropy.
        dice: weight of the soft Dice loss, the mean over the classes.
    """

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)


@config
class LvSegSettings:
    """Settings of `lv-seg`.

    Attributes:
        structures: what is told apart from the background.
        volumes: answer with end-diastolic and end-systolic volume, too; off where no training file
            states the size of a pixel. Studies without numbers of their own are judged by the
            volumes of their reference outlines.
        method: how volumes are made of outlines.
        clean_up: how predicted label maps are tidied.
        preprocess: from the decoded frame to the stored one; travels with the bundle.
        model: network and starting weights.
        augment: random changes during training.
        loss: weights of its parts.
        split: how patients are divided.
        operating: calibration ("none", "linear", "isotonic") and conformal interval of numbers.
    """

    structures: tuple[StructureName, ...] = ("cavity", "myocardium", "atrium")
    volumes: bool = True
    method: MethodName = "discs"
    clean_up: CleanUp = CleanUp()
    preprocess: SegmentPreprocess = SegmentPreprocess()
    model: SegmentModelConfig = SegmentModelConfig()
    augment: SegmentAugmentConfig = SegmentAugmentConfig()
    loss: SegmentLoss = SegmentLoss()
    split: SplitConfig = SplitConfig()
    operating: OperatingConfig = OperatingConfig(calibration="linear")

    def __post_init__(self) -> None:
        if "cavity" not in self.structures or len(set(self.structures)) < len(self.structures):
            raise ValueError("structures are different ones, the cavity among them.")
        NUMBER_CALIBRATIONS.get(self.operating.calibration)
        if self.model.window >= self.preprocess.image_size:
            raise ValueError(
                f"model.window ({self.model.window}) is smaller than preprocess.image_size "
                f"({self.preprocess.image_size}); 0 shows the network whole pictures."
            )


@TASKS.register("lv-seg")
class LvSegTask(Task):
    """Outlines of the left ventricle, and its ejection fraction."""

    name: ClassVar[str] = "lv-seg"
    title: ClassVar[str] = "Outline and ejection fraction of the left ventricle in apical views"
    intended_use: ClassVar[str] = (
        "Research: outlines of cavity, myocardium and atrium in apical echocardiograms of adults, "
        "and volumes by the method of discs. Not for clinical use."
    )
    settings_type: ClassVar[type] = LvSegSettings
    settings: LvSegSettings
    # DICOM states the size of a pixel, which volumes need.
    example: ClassVar[str] = 'predictor.predict(["a4c.dcm", "a2c.dcm"], views=["A4C", "A2C"])'
    measures_pixels: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True
    learns_from_labels: ClassVar[bool] = False
    shards_kind: ClassVar[str] = "segments"
    references: ClassVar[tuple[str, ...]] = (REFERENCE,)

    @property
    def carried(self) -> tuple[str, ...]:
        """The size of pixels and of pictures."""
        return GEOMETRY

    @property
    def max_batch(self) -> int:
        """As many pictures as make 16 forward passes, at least one."""
        passes = self.settings.model.passes(self.settings.preprocess.image_size)
        return max(1, 16 // passes.count)

    @property
    def targets(self) -> tuple[RegressionTarget, ...]:
        """EF, and the volumes where they are wanted."""
        return (EF_TARGET, EDV_TARGET, ESV_TARGET) if self.settings.volumes else (EF_TARGET,)

    @property
    def monitor(self) -> Monitor:
        """Mean Dice over structures and validation frames."""
        return Monitor(name="val_dice", mode="max")

    @property
    def modality(self) -> str:
        """Ultrasound."""
        return "US"

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """CAMUS, EchoNet's tracings, or a table with a column `mask`."""
        return read_segment_manifest(data, self.targets, patient_from=patient_from)

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Frames with a label map: those of `keyframe-ef` may be without."""
        if OUTLINED not in samples:
            return super().takes_part(samples)
        return samples[OUTLINED].to_numpy(bool)

    @property
    def decoder(self) -> SegmentDecoder:
        """From a file to frames, and from a label map to theirs."""
        return SegmentDecoder(preprocess=self.settings.preprocess)

    @property
    def stored(self) -> tuple[str, ...]:
        """Pictures and their label maps."""
        return (IMAGE, MASK)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Logits of all classes at all pixels."""
        return (MASKS,)

    def backbones(self, pattern: str) -> list[str]:
        """Wildcards go over the registered networks; any other architecture-encoder works, too."""
        if any(sign in pattern for sign in "*?["):
            return SEGMENTERS.matching(pattern.lower())
        return [segmenter_info(pattern).name]

    def build_model(self) -> SegmentModel:
        """Network and normalisation; takes (B, S, S, 1) uint8."""
        return SegmentModel(
            self.settings.model, channels=1, classes=1 + len(self.settings.structures)
        )

    def initialise(self, model: nn.Module, statistics: LabelStatistics) -> None:
        """Normalise by the training pictures."""
        assert isinstance(model, SegmentModel)
        model.initialise(statistics.pixel_mean, statistics.pixel_std)

    def starting_weights(self, cache: str) -> str | None:
        """Published weights of the encoder, or given ones of the whole network."""
        return segment_starting_weights(self.settings.model, 1, cache)

    def load_starting_weights(self, model: nn.Module, path: str) -> None:
        """Load the network, or its encoder alone."""
        assert isinstance(model, SegmentModel)
        load_segment_weights(model, path)

    def freeze(self, model: nn.Module, part: str) -> None:
        """Fix nothing, the encoder, or its first layers."""
        assert isinstance(model, SegmentModel)
        freeze_part(model, part, model.net.encoder, model.first_blocks())

    def pretrained_part(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        assert isinstance(model, SegmentModel)
        encoder: nn.Module = model.net.encoder
        return encoder

    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Moves, tones and noise, for each picture by itself, its label map with it.

        Where the network sees windows, one of each picture.
        """
        pictures, masks = augment_segments(batch[IMAGE], batch[MASK], self.settings.augment, seed)
        if window := self.settings.model.window:
            pictures, masks = draw_windows(pictures, masks, window, (*seed, _WINDOW_SEED))
        return {**batch, IMAGE: pictures, MASK: masks}

    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """Cross-entropy and soft Dice."""
        from segmentation_models_pytorch.losses import DiceLoss

        settings, wanted = self.settings.loss, self._classes(batch[MASK])
        total = settings.cross_entropy * F.cross_entropy(outputs[MASKS], wanted)
        if settings.dice:
            dice: Tensor = DiceLoss("multiclass")(outputs[MASKS], wanted)
            total = total + settings.dice * dice
        return total

    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """Probability of every class at every pixel, (B, K, S, S)."""
        return {MASKS: torch.softmax(outputs[MASKS], dim=1)}

    def measures(
        self,
        outputs: Outputs,
        batch: Batch,
        statistics: LabelStatistics,
        references: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Tensor | NDArray[Any]]:
        """Dice at the model's size; against references, what `measure_frame` has at the source's.

        The label maps themselves go along as PNG.
        """
        logits = outputs[MASKS]
        if references is None:
            found, wanted = logits.argmax(dim=1), self._classes(batch[MASK])
            return {
                f"dice_{name}": _dice(found == number, wanted == number)
                for number, name in enumerate(self.settings.structures, 1)
            }
        rows = [
            self.measure(logits[i], [float(batch[name][i]) for name in GEOMETRY], reference)
            for i, reference in enumerate(references[REFERENCE])
        ]
        return {name: _column([row[name] for row in rows]) for name in rows[0]}

    def label_map(self, logits: Tensor, height: int, width: int) -> NDArray[np.uint8]:
        """The labels of one picture at its source's size, not tidied.

        Args:
            logits: (K, S, S).
            height: of the source in px.
            width: of the source in px.
        """
        size = (height, width)
        enlarged = F.interpolate(logits[None].float(), size=size, mode="bilinear")[0]
        classes = enlarged.argmax(dim=0).cpu().numpy()
        numbers = np.array([0, *(STRUCTURES[name] for name in self.settings.structures)], np.uint8)
        return np.asarray(numbers[classes])

    def tables(self, scored: ScoredRows) -> Tables:
        """Numbers of each study, and what is measured of each frame."""
        samples = scored.samples
        parts = frame_table(samples, scored.split, scored.measures)
        if f"{PREDICTED}_widths" not in scored.measures:
            return Tables(pd.DataFrame(), parts)
        studies = self.studies(samples)
        pieces = []
        for study in studies.unique():
            mine = np.flatnonzero((studies == study).to_numpy())
            pieces += self._predictions(study, scored, mine)
        return Tables(pd.DataFrame(pieces), parts)

    def warnings(self, samples: pd.DataFrame) -> list[str]:
        """What the sizes of pixels leave open."""
        return pixel_doubts(samples["view"].tolist(), samples[list(SPACING)].to_numpy(float))

    def suited(self, samples: pd.DataFrame) -> LvSegTask:
        """Without volumes where no frame states the size of a pixel."""
        if not self.settings.volumes or in_mm(samples).any():
            return self
        log.warning(
            "No file states the size of a pixel: volumes cannot be judged, and the model answers "
            "with the ejection fraction alone (volumes=false)."
        )
        return LvSegTask(replace(self.settings, volumes=False))

    def judged(
        self, samples: pd.DataFrame, target: BinaryTarget | RegressionTarget
    ) -> NDArray[np.bool_]:
        """Studies with both phases of a view, which for volumes state the size of a pixel."""
        usable = self.takes_part(samples)
        if target.name != EF_TARGET.name:
            usable = usable & in_mm(samples)
        studies = self.studies(samples)
        phases = samples[usable].groupby([studies[usable], samples["view"][usable]])["phase"]
        complete = phases.nunique() == len(PHASES)
        return studies.isin(complete[complete].index.get_level_values(0)).to_numpy(bool)

    def require(self, samples: pd.DataFrame, split: pd.Series[str]) -> None:
        """Refuse a division without a test study that the targets can be measured in."""
        for target in self.targets:
            if (self.judged(samples, target) & (split == "test").to_numpy()).any():
                continue
            size, advice = "", "More patients, or a larger split.test."
            if target.name != EF_TARGET.name:
                size = " and states the size of a pixel"
                advice = f"{advice[:-1]}, or volumes=false."
            raise ValueError(
                f"no test study has both phases of a view{size}, so that {target.name!r} could "
                f"not be scored. {advice}"
            )

    def validation_figures(self, tables: Tables) -> dict[str, float]:
        """Mean Dice of each structure over validation frames, and of all of them."""
        assert tables.parts is not None
        names = [f"dice_{name}" for name in self.settings.structures]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            means = [float(np.nanmean(tables.parts[name])) for name in names]
            dice = float(np.nanmean(means))
        figures = {f"val_{name}": mean for name, mean in zip(names, means, strict=True)}
        return {"val_loss": 1 - dice, "val_dice": dice, **figures}

    def _classes(self, masks: Tensor) -> Tensor:
        """Label maps (B, S, S) as classes of this network; structures it leaves out are 0."""
        table = torch.zeros(max(STRUCTURES.values()) + 1, dtype=torch.long, device=masks.device)
        for number, name in enumerate(self.settings.structures, 1):
            table[STRUCTURES[name]] = number
        return table[masks.long()]

    def measure(
        self, logits: Tensor, geometry: Sequence[float], reference: NDArray[np.uint8]
    ) -> dict[str, Any]:
        """All that is measured of one frame at its source's size; see `measure_frame`.

        Args:
            logits: (K, S, S).
            geometry: what `GEOMETRY` names.
            reference: the label map to compare with, (H, W).
        """
        height, width, *spacing = geometry
        raw = self.label_map(logits, int(height), int(width))
        tidied = self.settings.clean_up.apply(raw)
        return measure_frame(
            raw, tidied, reference, stated_spacing(*spacing), self.settings.structures
        )

    def _predictions(
        self, study: str, scored: ScoredRows, mine: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """The rows of one study: a head for each number, and for what the references give."""
        frames = scored.samples.iloc[mine]
        measures = {name: values[mine] for name, values in scored.measures.items()}
        predicted, reference = (
            study_volumes(frames, measures, prefix, self.settings.method)
            for prefix in (PREDICTED, OF_REFERENCES)
        )
        common = {
            "sample_id": study,
            "patient_id": frames["patient_id"].iloc[0],
            "study_id": study,
            "source": frames["source"].iloc[0],
            "split": scored.split,
            "row": frames["row"].iloc[0],
        }
        rows = []
        for target in self.targets:
            known = scored.labels[target.name][mine]
            known = known[np.isfinite(known)]
            own, true = (_number(*found, target.name) for found in (predicted, reference))
            label = float(known[0]) if len(known) else true
            if np.isfinite(label) and np.isfinite(own):
                assert predicted[0] is not None
                row = {**common, "head": target.name, "label": label, "score": own}
                rows.append(row | {MEASURED_VIEWS: joined_views(predicted[0].views)})
            if len(known) and np.isfinite(true):
                head = f"{target.name}_{OF_REFERENCE}"
                rows.append({**common, "head": head, "label": label, "score": true})
        return rows


def ef_of_references(predictions: pd.DataFrame) -> dict[str, float]:
    """By study, the ejection fraction that its reference outlines give, of a predictions table."""
    own = predictions[predictions["head"] == f"{EF_TARGET.name}_{OF_REFERENCE}"]
    return dict(zip(own["study_id"].astype(str), own["score"].astype(float), strict=True))


def _number(volumes: Volumes | None, in_ml: bool, target: str) -> float:
    """A number of a study; a volume that is not in millilitres is none."""
    if volumes is None or not (in_ml or target == EF_TARGET.name):
        return float("nan")
    return {"ef": volumes.ef_percent, "edv": volumes.edv_ml, "esv": volumes.esv_ml}[target]


def _column(values: list[Any]) -> Tensor | NDArray[Any]:
    """Values of several frames side by side; those that are no numbers, as objects."""
    if isinstance(values[0], bytes):
        return np.array(values, dtype=object)
    return torch.tensor(np.array(values))


def _dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Dice of each picture, NaN where neither has the structure."""
    both = (found & wanted).flatten(1).sum(dim=1)
    sizes = found.flatten(1).sum(dim=1) + wanted.flatten(1).sum(dim=1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), torch.nan)
