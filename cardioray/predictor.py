"""A bundle ready to answer: the one way from files to answers, in Python and in a server."""

from __future__ import annotations

import functools
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors
from torch import nn

from cardioray.answers import ModelOutputs, binary_answer, number_answer
from cardioray.bundle import MODEL, Bundle, BundleError
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample, Decoder, ImageDecoder
from cardioray.data.frames import MAX_FRAMES
from cardioray.data.image import UnreadableImage
from cardioray.data.nifti import read_source
from cardioray.data.sampling import VALID, one_batch, stacked, windows_of
from cardioray.data.video_writing import encode_video
from cardioray.evaluation.operating_point import (
    BinaryOperatingPoint,
    OperatingPoint,
    RegressionOperatingPoint,
)
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.classifier import ImageClassifier
from cardioray.models.gate import InputGate
from cardioray.models.runtime import (
    FEATURES,
    IR_FILE,
    OpenVinoRuntime,
    Runtime,
    TorchRuntime,
    use_bf16,
)
from cardioray.models.video import VideoModel
from cardioray.tasks import Task, make_task
from cardioray.tasks.base import LabelStatistics
from cardioray.tasks.video import VideoTask

if TYPE_CHECKING:
    from cardioray.explain.cam import Explainer
    from cardioray.explain.clip_cam import ClipExplainer

OPENVINO = "openvino"
OPERATING_POINTS = "thresholds.json"
CALIBRATION = "calibration.json"
GATE = "gate.safetensors"
# The samples that took part in making the model, by their content (`digest_numbers`).
SEEN = "seen.safetensors"
TOLERANCE = "tolerance.json"
# Longer side of the pictures that heat maps are sent on.
OVERLAY_PX = 2048
# Windows of a cine that are explained: each costs a forward and a backward pass.
EXPLAINED_WINDOWS = 4
# How fast the overlay of a cine of unknown rate is played.
PLAYED_FPS = 30.0

Item = bytes | str | Path | NDArray[Any]


@dataclass(frozen=True)
class Overlay:
    """A picture or video of where an answer comes from.

    Attributes:
        content: the file.
        media_type: "image/png" or "video/mp4".
        importance: of a cine, the share of evidence in each frame, of the largest; else empty.
        areas: of an outlined cine, the area of the cavity in each frame, NaN where there is none;
            else empty.
        unit: of the areas, "cm2", or "px" where the size of a pixel is not known.
    """

    content: bytes
    media_type: str
    importance: tuple[float, ...] = ()
    areas: tuple[float, ...] = ()
    unit: str = ""


def task_of(bundle: Bundle, max_windows: int | None = None) -> Task:
    """The question of a bundle, with the settings its network was trained with.

    Args:
        bundle: the verified files.
        max_windows: as in `Predictor`.
    """
    settings = {k: v for k, v in bundle.config().items() if k not in ("task", "train", "scale")}
    if max_windows is not None and "sampling" in settings:
        most = min(settings["sampling"]["max_windows"], max_windows)
        settings["sampling"] = {**settings["sampling"], "max_windows": most}
    return make_task(bundle.task, settings)


class Predictor:
    """A trained model with everything that turns its outputs into answers.

    Attributes:
        bundle: the verified files.
        task: the question, with the settings the model was trained with.
        runtime: "openvino" or "torch".
        bf16: whether it computes in bf16.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: Literal["auto", "openvino", "torch"] = "auto",
        precision: Literal["auto", "bf16", "fp32"] = "auto",
        num_threads: int | None = None,
        max_windows: int | None = None,
        network: bool = True,
    ) -> None:
        """Read a bundle.

        Args:
            bundle: the verified files.
            runtime: "auto" is OpenVINO on a CPU where the bundle holds the export, else torch.
            precision: "auto" is bf16 where the device is faster so.
            num_threads: of one forward pass on a CPU; all cores by default.
            max_windows: most windows of a cine that the network is asked about; by default as
                many as the bundle was scored with.
            network: load the network; False for a process that decodes and answers while another
                one runs it.
        """
        self.bundle = bundle
        self.task: Task = task_of(bundle, max_windows)
        self.operating_points = read_operating_points(bundle)
        self.gate = InputGate.from_tensors(load_arrays((bundle.path / GATE).read_bytes()))
        self._statistics = _statistics(bundle)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.runtime = _chosen_runtime(runtime, bundle, device)
        self.bf16 = use_bf16(precision, device)
        self._model: nn.Module | None = None
        self._explainer: Explainer | None = None
        self._clip_explainer: ClipExplainer | None = None
        self._runtime: Runtime | None = None
        if not network:
            return
        if self.runtime == OPENVINO:
            folder = bundle.path / OPENVINO
            self._runtime = OpenVinoRuntime(folder, bf16=self.bf16, num_threads=num_threads)
        else:
            self._runtime = TorchRuntime(self.model, device=device, bf16=self.bf16)

    @property
    def model(self) -> nn.Module:
        """The network in PyTorch, in eval mode; loaded when it is first asked for."""
        if self._model is None:
            model = self.task.build_model()
            state = load_tensors((self.bundle.path / MODEL).read_bytes())
            model.load_state_dict(state)
            self._model = model.eval()
        return self._model

    @property
    def decoder(self) -> Decoder:
        """From a file to what the network takes."""
        return self.task.decoder

    def predict(
        self, items: Item | Sequence[Item], views: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Answer for one study: one or several files, or frames as arrays.

        Args:
            items: file contents, paths (local or s3://), or uint8 arrays (H, W) or (H, W, 3).
            views: of cines, the view of each item, "" where it is not known. A cine of another
                view than the network was trained on is left out.

        Returns:
            Per target its answer, the model's name, and warnings; see docs/serving.md.

        Raises:
            UnreadableImage: when an item cannot be read; says why and what is accepted. When every
                cine is of another view than the network was trained on.
            FileNotFoundError: when a path does not exist.
            ValueError: when there are not as many views as items, or the task is not about cines.
        """
        samples = self.read(items, views)
        self.check(samples)
        return self.answer(samples, self.infer(samples))

    def check(self, samples: Sequence[DecodedSample]) -> None:
        """Refuse, before the network runs, a study that no answer can be given for; nothing here.

        Raises:
            UnreadableImage: says why.
        """

    def read(
        self, items: Item | Sequence[Item], views: Sequence[str] | None = None
    ) -> list[DecodedSample]:
        """Decode the items of one study; arguments and errors as of `predict`."""
        listed = [items] if isinstance(items, bytes | str | Path | np.ndarray) else list(items)
        said = [""] * len(listed) if views is None else list(views)
        if views is not None and not self.task.takes_views:
            raise ValueError(f"Leave out views: {self.task.name} is not about cines.")
        if len(said) != len(listed):
            raise ValueError(f"{len(listed)} items have {len(said)} views; give one for each.")
        return [
            replace(sample, view=view)
            for item, view in zip(listed, said, strict=True)
            for sample in self._decode_item(item)
        ]

    def decode(self, data: bytes, max_frames: int = MAX_FRAMES) -> list[DecodedSample]:
        """Decode one file as training did.

        Raises:
            UnreadableImage: when it cannot be read, or holds more than `max_frames` frames.
        """
        return self.decoder.decode(data, None, max_frames)

    def infer(self, samples: Sequence[DecodedSample]) -> ModelOutputs:
        """Run the network over samples of one or of many studies.

        It is not asked about a cine that is said to show another view than it was trained on.

        Raises:
            UnreadableImage: when there are none.
        """
        if not samples:
            raise UnreadableImage("No file was given; at least one frame is needed.")
        sampler, most = self.task.sampler, self.task.max_batch
        counts = np.zeros(len(samples), int)
        scores: list[Mapping[str, NDArray[np.float32]]] = []
        features: list[NDArray[np.float32]] = []
        mine = np.flatnonzero(self._of_own_views(samples)).tolist()
        stored = ((np.array([i]), one_batch(samples[i].arrays)) for i in mine)
        for owners, arrays in windows_of(stored, sampler, most, thorough=True):
            carried = {
                name: np.array([samples[i].facts.get(name, math.nan) for i in owners], np.float32)
                for name in self.task.carried
            }
            own_scores, own_features = self._run(self.task.inputs(arrays | carried))
            np.add.at(counts, owners, 1)
            scores.append(own_scores)
            features.append(own_features)
        if not mine:
            nothing = {target.name: np.zeros(0, np.float32) for target in self.task.targets}
            return ModelOutputs.of_windows(counts.tolist(), nothing, np.zeros((0, 0), np.float32))
        joined = {name: np.concatenate([part[name] for part in scores]) for name in scores[0]}
        return ModelOutputs.of_windows(counts.tolist(), joined, np.concatenate(features))

    def passes(self, samples: Sequence[DecodedSample]) -> int:
        """How many forward passes `infer` takes for some samples, at least 1."""
        mine = compress(samples, self._of_own_views(samples))
        windows = sum(self.task.sampler.count(sample.arrays) for sample in mine)
        return max(1, -(-windows // self.task.max_batch))

    def answer(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> dict[str, Any]:
        """The answer for one study from what the network said of its frames.

        Raises:
            UnreadableImage: when every cine is of another view than the network was trained on.
        """
        assert len(samples) == len(outputs)
        used = outputs.asked
        if not used.any():
            raise UnreadableImage(
                f"None of the {len(samples)} cines shows one of the views "
                f"{', '.join(self._views)}, which the network was trained on; there are "
                f"{_by_view(samples)}. Send a cine of {' or '.join(self._views)}; leave a view "
                "empty where it is not known."
            )
        own = outputs.take(np.flatnonzero(used))
        answers: dict[str, Any] = {}
        for target in self.task.targets:
            point = self.operating_points[target.name]
            frames = own.scores[target.name]
            if target.kind == "binary":
                assert isinstance(point, BinaryOperatingPoint)
                answers[target.name] = binary_answer(point, target.classes, frames)
            else:
                assert isinstance(point, RegressionOperatingPoint)
                answers[target.name] = number_answer(point, target.unit, frames)
        details = self.task.details(samples, outputs.windows)
        if "cines" in details and any(sample.view for sample in samples):
            details["cines"] = [
                {**cine, "view": sample.view, "used": bool(mine)}
                for cine, sample, mine in zip(details["cines"], samples, used, strict=True)
            ]
        return {
            **answers,
            **details,
            "model": self.bundle.name,
            "bundle": self.bundle.identity,
            "frames": len(samples),
            "warnings": [
                *self.bundle.metadata["warnings"],
                *self.task.doubts(samples),
                *self._left_out(samples, used),
                *self.gate_warnings(list(compress(samples, used)), own),
            ],
        }

    @property
    def _views(self) -> tuple[str, ...]:
        """The views that the network was trained on; () where it was not chosen by view."""
        return self.task.settings.views if isinstance(self.task, VideoTask) else ()

    def _of_own_views(self, samples: Sequence[DecodedSample]) -> NDArray[np.bool_]:
        """Which samples the network is asked about, shape (N,).

        All but cines that are said to show another view than those it was trained on.
        """
        said = np.array([bool(sample.view) for sample in samples], bool)
        if not self._views or not said.any():
            return np.ones(len(samples), bool)
        table = pd.DataFrame({"view": [sample.view for sample in samples]})
        return ~said | self.task.takes_part(table)

    def _left_out(self, samples: Sequence[DecodedSample], used: NDArray[np.bool_]) -> list[str]:
        if used.all():
            return []
        others = _by_view(list(compress(samples, ~used)))
        return [
            f"Left out of {len(samples)} cines: {others}. The network was trained on "
            f"{', '.join(self._views)}."
        ]

    def overlay(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """A frame or cine with its heat for the class the headline answer names.

        A frame whose longer side has more than 2,048 px is shrunk to that.

        Args:
            sample: one frame, or one cine.
            method: one of `cardioray.explain.cam.METHODS`; of a cine, "gradcam" alone. By default
                "gradcam++" of a frame.

        Returns:
            A PNG, or an MP4 with the importance of every frame.

        Raises:
            ValueError: for an unknown method, and for a network that has no feature map.
        """
        if isinstance(self.task, VideoTask):
            return self._cine_overlay(sample, method or "gradcam", self.task)
        from cardioray.explain.cam import overlay  # with all it loads; answers need none of it

        method = method or "gradcam++"
        sample = replace(sample, picture=_shrunk(sample.picture, OVERLAY_PX))
        heat = self._heat_map(sample, method, self._headline(sample))
        stream = io.BytesIO()
        Image.fromarray(overlay(sample.picture, heat)).save(stream, format="PNG")
        return Overlay(stream.getvalue(), "image/png")

    def explanation(self, sample: DecodedSample, method: str | None = None) -> Overlay:
        """The frame, its heat map and the overlay side by side, titled with the answer, as PNG.

        Of a cine, what `overlay` gives.
        """
        if isinstance(self.task, VideoTask):
            return self.overlay(sample, method)
        from cardioray.explain.cam import Explanation, explain_grid

        method = method or "gradcam++"
        answer = self._headline(sample)
        if "class" in answer:
            title = f"{answer['class']}, probability {answer['probability']:.2f}"
        else:
            title = f"{answer['value']:.3g} {answer['unit']}".rstrip()
        heat = self._heat_map(sample, method, answer)
        return Overlay(explain_grid([Explanation(sample.picture, heat, title)]), "image/png")

    def explain(
        self,
        data: bytes,
        method: str | None = None,
        *,
        spacing_mm: tuple[float, float] | None = None,
    ) -> Overlay:
        """Where in a file an answer about it comes from: `explanation` of its first frame or cine.

        Args:
            data: the file.
            method: as of `explanation`.
            spacing_mm: height and width of a pixel, for what is measured in outlines.

        Raises:
            ValueError: as of `explanation`, and for the size of a pixel where nothing is measured.
            UnreadableImage: when the file cannot be read.
        """
        self._refuse_spacing(spacing_mm)
        return self.explanation(self.decode(data)[0], method)

    def _refuse_spacing(self, spacing_mm: tuple[float, float] | None) -> None:
        if spacing_mm is not None:
            raise ValueError(
                f"Leave out the size of a pixel: {self.task.name} measures nothing in the file."
            )

    def _cine_overlay(self, sample: DecodedSample, method: str, task: VideoTask) -> Overlay:
        from cardioray.explain.clip_cam import ClipExplainer, assemble, overlay_frames

        if method != "gradcam":
            raise NoFeatureMap(
                f"Of cines there is no {method}: the map over time is made by gradcam alone."
            )
        if self._clip_explainer is None:
            assert isinstance(self.model, VideoModel)
            self._clip_explainer = ClipExplainer(self.model)
        clip, sampling, name = sample.arrays[CLIP], task.sampler, task.targets[0].name
        answer = self._headline(sample)
        starts = sampling.starts(len(clip), thorough=True)
        chosen = np.unique(np.linspace(0, len(starts) - 1, EXPLAINED_WINDOWS).round().astype(int))
        heats = []
        for index in chosen:
            window = sampling.cut(clip, starts[index])
            heats.append(
                self._clip_explainer.window(
                    window[CLIP], int(window[VALID]), name, prediction=answer.get("prediction")
                )
            )
        found = assemble(heats, [starts[index] for index in chosen], sampling.stride, len(clip))
        fps = sample.facts.get("fps", math.nan)
        video = encode_video(
            overlay_frames(clip, found), PLAYED_FPS if math.isnan(fps) else fps, "mp4"
        )
        return Overlay(video, "video/mp4", tuple(float(value) for value in found.importance))

    def _headline(self, sample: DecodedSample) -> dict[str, Any]:
        answer: dict[str, Any] = self.answer([sample], self.infer([sample]))
        headline: dict[str, Any] = answer[self.task.targets[0].name]
        return headline

    def _heat_map(
        self, sample: DecodedSample, method: str, answer: Mapping[str, Any]
    ) -> NDArray[np.float32]:
        """Where in the original frame the evidence for an answer lies, in [0, 1]."""
        from cardioray.explain.cam import Explainer, to_source

        if self._explainer is None:
            assert isinstance(self.model, ImageClassifier)
            self._explainer = Explainer(self.model)
        image = sample.arrays[self.task.columns[0]]
        heat = self._explainer.class_activation(
            image, self.task.targets[0].name, method, prediction=answer.get("prediction")
        )
        decoder = self.task.decoder
        assert isinstance(decoder, ImageDecoder)
        return to_source(heat, sample.source_shape, decoder.preprocess.fit)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Answer for blank samples, so that the first request is not the slow one."""
        shape = self.bundle.json("preprocess.json")["columns"]
        for size in batch_sizes:
            self._run(tuple(np.zeros((size, *shape[name]), np.uint8) for name in self.task.columns))
        blank = self.blank()
        self.answer([blank], self.infer([blank]))

    def blank(self) -> DecodedSample:
        """A sample of which every pixel is black."""
        shapes = self.bundle.json("preprocess.json")["columns"]
        arrays = {name: np.zeros(shapes[name], np.uint8) for name in self.task.columns}
        return DecodedSample(frame="0", arrays=arrays, picture=np.zeros((512, 512), np.uint8))

    @functools.cached_property
    def _seen(self) -> NDArray[np.uint64]:
        return load_arrays((self.bundle.path / SEEN).read_bytes())["digests"]

    def seen(self, samples: Sequence[DecodedSample]) -> NDArray[np.bool_]:
        """Whether the very same samples took part in making the model, whatever their names.

        Returns:
            True for each that is a training, validation or calibration sample; shape (N,).
        """
        stored = self.task.decoder.columns
        digests = digest_numbers([sample.digest(stored) for sample in samples])
        return np.isin(digests, self._seen)

    def _decode_item(self, item: Item) -> list[DecodedSample]:
        if isinstance(item, np.ndarray):
            return [self.decoder.from_array(item)]
        return self.decode(item if isinstance(item, bytes) else read_source(str(item)))

    def _run(
        self, arrays: tuple[NDArray[np.uint8], ...]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        assert self._runtime is not None, "this predictor was made without its network"
        raw = self._runtime.run(arrays)
        tensors = {name: torch.from_numpy(value) for name, value in raw.items()}
        scores = self.task.scores(tensors, self._statistics)
        return {k: v.numpy() for k, v in scores.items()}, raw[FEATURES]

    def gate_warnings(self, samples: Sequence[DecodedSample], outputs: ModelOutputs) -> list[str]:
        """What of some samples is unlike the training pictures or cines, as sentences."""
        shown = [self.task.sampler.windows(sample.arrays, thorough=False)[0] for sample in samples]
        images = self.task.pictures(stacked(shown))
        shapes = np.array([sample.source_shape for sample in samples])
        findings = self.gate.check(images, shapes, outputs.features)
        flagged = [finding.sentences for finding in findings if finding.sentences]
        if not flagged:
            return []
        cines = isinstance(self.task, VideoTask)
        known, each = ("cines", "cines") if cines else ("pictures", "frames")
        # Every sentence holds its own frame's numbers: one frame's reasons stand for all.
        which = "" if len(samples) == 1 else f"{len(flagged)} of {len(samples)} {each}, the first: "
        text = f"Input unlike the training {known}: {which}{'; '.join(flagged[0][:3])}."
        unsaid = any(f.sentences and not s.view for f, s in zip(findings, samples, strict=True))
        if self._views and unsaid:
            text += (
                f" This may be another view than {' or '.join(self._views)}, which the network was "
                "trained on."
            )
        return [text]


def digest_numbers(digests: Sequence[str]) -> NDArray[np.uint64]:
    """The first 64 bit of SHA-256 digests: enough to tell samples apart, and one number each."""
    return np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)


def read_operating_points(
    bundle: Bundle,
) -> dict[str, BinaryOperatingPoint | RegressionOperatingPoint]:
    """Per target how scores become answers."""
    thresholds = bundle.json(OPERATING_POINTS)
    calibrations = bundle.json(CALIBRATION)
    merged = {name: {**values, **calibrations[name]} for name, values in thresholds.items()}
    return {name: OperatingPoint.from_dict(values) for name, values in merged.items()}


def _by_view(samples: Sequence[DecodedSample]) -> str:
    """How many cines are said to show each view: "1 of A2C, 2 of PLAX"."""
    counts = Counter(sample.view for sample in samples)
    return ", ".join(f"{count} of {view}" for view, count in sorted(counts.items()))


def _shrunk(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """A picture whose longer side is at most `longest`."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _statistics(bundle: Bundle) -> LabelStatistics:
    values = bundle.metadata["label_statistics"]
    return LabelStatistics(
        class_weights={k: (v[0], v[1]) for k, v in values["class_weights"].items()},
        means=values["means"],
        deviations=values["deviations"],
        pixel_mean=tuple(values.get("pixel_mean", ())),
        pixel_std=tuple(values.get("pixel_std", ())),
    )


def _chosen_runtime(asked: str, bundle: Bundle, device: torch.device) -> str:
    exported = (bundle.path / OPENVINO / IR_FILE).is_file()
    if asked == OPENVINO and not exported:
        raise BundleError(f"{bundle.path} has no {OPENVINO}/ export; use runtime='torch'.")
    if asked != "auto":
        return asked
    return OPENVINO if exported and device.type == "cpu" else "torch"
