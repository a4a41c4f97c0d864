"""Outlines of the frames of a study: views, phases and beats, and what an answer says of each."""

from __future__ import annotations

import base64
import io
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cardioray.clinical.beats import phases_of
from cardioray.clinical.simpson import Cavity
from cardioray.clinical.volumes import ED, ES, FOUR, TWO, MethodName, volumes_of
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.label_maps import CAVITY, STRUCTURES
from cardioray.tasks.lv_seg import LvSegTask

MaskFormat = Literal["png", "rle"]

HOW = "Say what each file shows: A4C-ED, A4C-ES, A2C-ED or A2C-ES of a frame, A4C or A2C of a cine."
_SAID = re.compile(r"(?P<view>A4C|A2C|4CH|2CH)(?:[-_ ](?P<phase>ED|ES))?", re.IGNORECASE)
_VIEWS = {"4CH": FOUR, "2CH": TWO, FOUR: FOUR, TWO: TWO}
# Pixel sizes of one study that differ by more are of two machines, or of two studies.
_SPACING_DIFFERS = 0.05
_LARGEST_PIXEL_MM = 20.0
# RGB; told apart by whoever does not see red and green.
COLOURS = {"atrium": (86, 180, 233), "myocardium": (230, 159, 0), "cavity": (0, 158, 115)}


@dataclass(frozen=True, eq=False)
class Segmented:
    """One frame, outlined.

    Attributes:
        view: "A4C" or "A2C".
        phase: "ED", "ES", or "" for a frame of a cine whose phase is to be found.
        frame: its number in its file, from 0.
        labels: label map at the size of the source, tidied, (H, W).
        cavity: what volumes need of it; None where no cavity was found.
        spacing_mm: height and width of a pixel.
        fps: frames a second of its cine; NaN where that is not known.
    """

    view: str
    phase: str
    frame: int
    labels: NDArray[np.uint8]
    cavity: Cavity | None
    spacing_mm: tuple[float, float]
    fps: float

    @property
    def said(self) -> str:
        """What it shows: "A4C-ED", or "A4C" of a cine."""
        return shown_as(self.view, self.phase)


@dataclass(frozen=True)
class OutlinedBeat:
    """One beat of a cine.

    Attributes:
        view: "A4C" or "A2C".
        ed: place of the frame of end diastole among the frames of the study.
        es: likewise of end systole.
        ef_percent: ejection fraction by this view alone; None without a cavity in both.
    """

    view: str
    ed: int
    es: int
    ef_percent: float | None


@dataclass(frozen=True, eq=False)
class StudyOutlines:
    """What is drawn and measured in the frames of a study.

    Attributes:
        frames: in the order in which they were handed in.
        cavities: by view and phase; of a cine the mean over its beats.
        beats: of cines.
        doubts: what speaks against them, as sentences.
    """

    frames: tuple[Segmented, ...]
    cavities: Mapping[tuple[str, str], Cavity]
    beats: tuple[OutlinedBeat, ...]
    doubts: tuple[str, ...]

    @property
    def cines(self) -> dict[str, list[int]]:
        """By view, places of the frames of its cine."""
        return cines_of(self.frames)


def cines_of(frames: Sequence[Segmented]) -> dict[str, list[int]]:
    """By view, places of the frames of its cine; a view without one is left out."""
    found = {
        view: [i for i, frame in enumerate(frames) if frame.view == view and not frame.phase]
        for view in (FOUR, TWO)
    }
    return {view: places for view, places in found.items() if places}


def tidied_map(
    task: LvSegTask, probabilities: NDArray[np.float32], height: int, width: int
) -> NDArray[np.uint8]:
    """The tidied label map of one frame at the size of its source, (height, width).

    Args:
        task: whose network was asked.
        probabilities: of every class, (K, S, S).
        height: of the source in px.
        width: of the source in px.
    """
    # Between pixels, logits are interpolated, as where the bundle was scored.
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-12)))
    return task.settings.clean_up.apply(task.label_map(logits, height, width))


def cavity_pixels(labels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Pixels of the cavity in each label map, NaN where there is none; (T,).

    Phases are looked for in them and not in cm²: sums of whole numbers are exact, so that every way
    to a cine finds the same frames.
    """
    counts = np.array([np.count_nonzero(own == CAVITY) for own in labels], float)
    return np.where(counts > 0, counts, np.nan)


def with_spacing(sample: DecodedSample, spacing_mm: tuple[float, float]) -> DecodedSample:
    """The sample with the size of a pixel that somebody says, where its file does not."""
    row, column = spacing_mm
    facts = dict(sample.facts)
    if not facts.get("spacing_row_mm", math.nan) > 0:
        facts |= {"spacing_row_mm": row, "spacing_column_mm": column}
    return replace(sample, facts=facts)


def parse_spacing(text: str) -> tuple[float, float]:
    """Height and width of a pixel in mm as somebody writes them: "0.31,0.31".

    Raises:
        ValueError: when these are not two numbers above 0 and below 20.
    """
    try:
        height, width = (float(part) for part in text.split(","))
    except ValueError:
        height = width = 0.0
    if not (0 < height < _LARGEST_PIXEL_MM and 0 < width < _LARGEST_PIXEL_MM):
        raise ValueError(
            "spacing_mm is the height and the width of a pixel in mm, two numbers above 0 with a "
            "comma between them, such as 0.31,0.31."
        )
    return height, width


def outlined(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey picture (H, W) with the outline of each structure, (H, W, 3)."""
    drawn = np.repeat(picture[..., None], 3, axis=2).copy()
    width = max(1, round(max(picture.shape) / 300))
    for name, colour in COLOURS.items():
        mask = (labels == STRUCTURES[name]).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, found, -1, colour, width)
    return drawn


def parse_view(text: str) -> tuple[str, str]:
    """View and phase, "" of a cine, as somebody says them: "A4C-ED", "4ch es", "A2C".

    Raises:
        UnreadableImage: when it is none of these.
    """
    match = _SAID.fullmatch(text.strip())
    if match is None:
        what = f"{text!r} is none of these. " if text else ""
        raise UnreadableImage(f"{what}{HOW}")
    return _VIEWS[match["view"].upper()], (match["phase"] or "").upper()


def shown_as(view: str, phase: str) -> str:
    """View and phase as answers write them: "A4C-ED", or "A4C" of a cine."""
    return f"{view}-{phase}" if phase else view


def said_of(sample: DecodedSample) -> tuple[str, str]:
    """View and phase that were said of a frame.

    Raises:
        UnreadableImage: when none were, or a cine was sent as a frame or the other way round. One
            frame that was chosen from a cine is a frame.
    """
    view, phase = parse_view(sample.view)
    chosen = sample.facts.get("chosen") == 1
    if phase and sample.facts.get("is_cine") == 1 and not chosen:
        raise UnreadableImage(
            f"The file that was sent as the frame {view}-{phase} is a cine: it has an axis of "
            f"time. Send it as {view}, and both phases are found in it, or choose one frame."
        )
    if not phase and (chosen or sample.facts.get("is_cine") == 0):
        raise UnreadableImage(
            f"The file that was sent as the cine {view} is a single frame. Send it as {view}-ED or "
            f"{view}-ES."
        )
    return view, phase


def refuse_contradictions(
    samples: Sequence[DecodedSample], said: Sequence[tuple[str, str]]
) -> None:
    """Refuse a view that is there twice, and files of several patients or examinations."""
    places: dict[tuple[str, str, str], int] = defaultdict(int)
    for sample, (view, phase) in zip(samples, said, strict=True):
        places[view, phase, "" if phase else sample.frame] += 1
    twice = sorted({shown_as(v, p) for (v, p, _), n in places.items() if n > 1})
    if twice:
        raise UnreadableImage(f"Several files were sent as {', '.join(twice)}; send one of each.")
    both = sorted(
        view for view in (FOUR, TWO) if (view, "") in said and {(view, ED), (view, ES)} & set(said)
    )
    if both:
        raise UnreadableImage(f"Of {both[0]}, send frames or a cine, not both.")
    if _several("patient", samples):
        raise UnreadableImage(
            "The files are of several patients, by their DICOM tags. Send the study of one."
        )
    if _several("study", samples):
        raise UnreadableImage(
            "The files are of several examinations (Study Instance UID), and what was filmed on "
            "different days makes no ejection fraction. Send the files of one."
        )


def _several(fact: str, samples: Sequence[DecodedSample]) -> bool:
    """Whether files that state a fact state different ones."""
    found = {sample.facts.get(fact, math.nan) for sample in samples}
    return len({value for value in found if not math.isnan(value)}) > 1


def refuse_incomplete(said: Sequence[tuple[str, str]]) -> None:
    """Refuse a study in which no view has a cine, or a frame at either phase."""
    if not any({(view, ED), (view, ES)} <= set(said) or (view, "") in said for view in (FOUR, TWO)):
        raise UnreadableImage(
            f"No view has both phases, so that there is no ejection fraction. {HOW}"
        )


def spacing_of(samples: Sequence[DecodedSample]) -> list[tuple[float, float]]:
    """Size of a pixel of every frame; views may differ, frames of one view may not."""
    found: list[tuple[float, float]] = []
    by_view: dict[str, tuple[float, float]] = {}
    for sample in samples:
        row, column = (
            sample.facts.get(f"spacing_{side}_mm", math.nan) for side in ("row", "column")
        )
        if not (row > 0 and column > 0 and math.isfinite(row) and math.isfinite(column)):
            raise UnreadableImage(
                "The file does not state the size of a pixel, or states 0, so that there are no "
                "volumes. Say it with spacing_mm, height and width of a pixel, such as 0.31,0.31."
            )
        view, _ = parse_view(sample.view)
        first = by_view.setdefault(view, (row, column))
        if any(
            abs(one - other) > _SPACING_DIFFERS * one
            for one, other in zip(first, (row, column), strict=True)
        ):
            raise UnreadableImage(
                f"Pixels of the frames of {view} have different sizes ({first[0]:.3g} x "
                f"{first[1]:.3g} and {row:.3g} x {column:.3g} mm): they are not of one cine."
            )
        found.append((row, column))
    return found


def study_outlines(frames: Sequence[Segmented], method: MethodName) -> StudyOutlines:
    """The phases of a study: as they were said of frames, and as they are found in cines.

    What speaks against a beat is said of it where the study is more than that beat.

    Args:
        frames: outlined frames of one study.
        method: how the ejection fraction of a beat is made of its outlines.
    """
    cavities: dict[tuple[str, str], Cavity] = {}
    beats: list[OutlinedBeat] = []
    doubts: list[str] = []
    for frame in frames:
        if frame.phase and frame.cavity is not None:
            cavities[frame.view, frame.phase] = frame.cavity
        elif frame.cavity is None and frame.phase:
            doubts.append(f"No cavity was found in {frame.said}.")
    views = {frame.view for frame in frames}
    for view, cine in cines_of(frames).items():
        measured = [frames[i].cavity for i in cine]
        areas = cavity_pixels([frames[i].labels for i in cine])
        fps = frames[cine[0]].fps
        pairs = phases_of(areas, None if math.isnan(fps) else fps)
        for number, key in enumerate((ED, ES)):
            chosen = [measured[pair[number]] for pair in pairs]
            known = [cavity for cavity in chosen if cavity is not None]
            if known:
                cavities[view, key] = _mean(known)
        for number, (ed, es) in enumerate(pairs, start=1):
            single = {(view, ED): measured[ed], (view, ES): measured[es]}
            own = volumes_of({key: c for key, c in single.items() if c is not None}, method)
            ef = None if own is None else own.ef_percent
            beats.append(OutlinedBeat(view, cine[ed], cine[es], ef))
            if own is not None and (len(pairs) > 1 or len(views) > 1):
                at = f"frames {frames[cine[ed]].frame} and {frames[cine[es]].frame}"
                doubts += [f"{view}, beat {number} ({at}): {doubt}" for doubt in own.doubts]
        lost = int(np.isnan(areas).sum())
        if lost:
            doubts.append(f"{view}: no cavity was found in {lost} of {len(cine)} frames.")
        if math.isnan(fps):
            doubts.append(
                f"{view}: the file does not say how many frames a second it has; beats are not "
                "told apart."
            )
    return StudyOutlines(tuple(frames), cavities, tuple(beats), tuple(doubts))


def _mean(cavities: Sequence[Cavity]) -> Cavity:
    """The mean of one view and phase over several beats."""
    return Cavity(
        widths_mm=np.mean([cavity.widths_mm for cavity in cavities], axis=0),
        length_mm=float(np.mean([cavity.length_mm for cavity in cavities])),
        area_mm2=float(np.mean([cavity.area_mm2 for cavity in cavities])),
        base=cavities[0].base,
        apex=cavities[0].apex,
        annulus=cavities[0].annulus,
    )


def used_of_cines(
    samples: Sequence[DecodedSample], frames: Sequence[Segmented]
) -> list[dict[str, Any]]:
    """Per cine, how many frames its file has and how many were used, for an answer.

    Args:
        samples: the frames of a study.
        frames: the same, outlined.
    """
    return [
        {
            "view": view,
            "frames_in_file": _whole(samples[places[0]].facts.get("source_frames", math.nan)),
            "frames_used": len(places),
            "fps": None if math.isnan(frames[places[0]].fps) else frames[places[0]].fps,
        }
        for view, places in cines_of(frames).items()
    ]


def cut_doubts(samples: Sequence[DecodedSample], frames: Sequence[Segmented]) -> list[str]:
    """What is to be said of cines that have more frames than were read; as `used_of_cines`."""
    doubts = []
    for view, places in cines_of(frames).items():
        wanted = samples[places[0]].facts.get("wanted_frames", math.nan)
        if wanted > len(places):
            doubts.append(
                f"{view}: of {wanted:.0f} frames the first {len(places)} were used; beats after "
                "them count for nothing."
            )
    return doubts


def _whole(number: float) -> int | None:
    return None if math.isnan(number) else int(number)


def described(
    frame: Segmented, masks: MaskFormat | None, structures: Sequence[str], *, contours: bool
) -> dict[str, Any]:
    """One frame in an answer.

    Args:
        frame: outlined.
        masks: give its label map, as PNG or as lengths of runs.
        structures: those that the network tells apart.
        contours: give the outline of each.
    """
    cavity = frame.cavity
    known = {name: STRUCTURES[name] for name in structures}
    pixel_cm2 = frame.spacing_mm[0] * frame.spacing_mm[1] / 100
    found: dict[str, Any] = {
        "view": frame.view,
        "phase": frame.phase or None,
        "frame": frame.frame,
        "area_cm2": {
            name: float((frame.labels == number).sum()) * pixel_cm2
            for name, number in known.items()
        },
        "length_mm": None if cavity is None else cavity.length_mm,
    }
    if masks == "png":
        stream = io.BytesIO()
        Image.fromarray(frame.labels).save(stream, format="PNG")
        coded = base64.b64encode(stream.getvalue()).decode()
        found["mask"] = {"png": f"data:image/png;base64,{coded}"}
    elif masks == "rle":
        found["mask"] = {
            "size": list(frame.labels.shape),
            "runs": {name: _runs(frame.labels == number) for name, number in known.items()},
        }
    if contours:
        found["contours"] = {
            name: _contour(frame.labels == number, frame.spacing_mm)
            for name, number in known.items()
        }
    return found


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs, row after row, of pixels outside and inside in turn, outside first."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    lengths: list[int] = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else lengths


def _contour(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> dict[str, list[list[float]]]:
    """The longest outline as points, x before y, in px and in mm from the upper left corner."""
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not found:
        return {"px": [], "mm": []}
    points = max(found, key=len)[:, 0].astype(float)
    in_mm = (points + 0.5) * np.array(spacing_mm[::-1])
    return {"px": points.tolist(), "mm": in_mm.round(3).tolist()}
