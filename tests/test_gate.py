"""The input gate: what passes, what is flagged and how it is said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save
from scipy import ndimage
from skimage import data as pictures
from sklearn.decomposition import PCA

from cardioray.config import replace
from cardioray.data.image import ImagePreprocess, read_frames
from cardioray.models.classifier import ImageClassifier, ImageModelConfig
from cardioray.models.gate import COMPONENTS, FeatureDistance, InputGate
from cardioray.models.pixel_ranges import MEASURES, image_measures
from cardioray.phantoms.angiogram import PRESETS, draw_patient, render_frames

SIZE, WIDTH = 48, 32


def draw(seed: int, patients: int = 40, frames: int = 5, shift: float = 0.6) -> tuple:
    """Cloudy pictures (N, SIZE, SIZE, 1), 256 px sources, features and patients."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(6, WIDTH))
    images, features, names = [], [], []
    for patient in range(patients):
        brightness, own = rng.uniform(100, 140), shift * rng.normal(size=WIDTH)
        for _ in range(frames):
            cloud = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 6)
            grey = brightness + 30 * cloud / cloud.std() + 4 * rng.normal(size=(SIZE, SIZE))
            images.append(np.clip(grey, 0, 255).astype(np.uint8)[..., None])
            features.append(rng.normal(size=6) @ mixing + own + 0.2 * rng.normal(size=WIDTH))
            names.append(f"{seed}-{patient}")
    shapes = np.full((len(images), 2), 256)
    return np.stack(images), shapes, np.array(features, np.float32), np.array(names)


@pytest.fixture(scope="module")
def gate() -> InputGate:
    return InputGate.fit(*draw(0))


def flagged_share(gate: InputGate, images: np.ndarray, shapes: np.ndarray, features: np.ndarray):
    return np.mean([bool(found.sentences) for found in gate.check(images, shapes, features)])


def test_pictures_of_new_patients_pass(gate: InputGate) -> None:
    images, shapes, features, _ = draw(1)
    assert flagged_share(gate, images, shapes, features) <= 0.03


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image.astype(int) + 110, 0, 255).astype(np.uint8)


def flat(image: np.ndarray) -> np.ndarray:
    return np.full_like(image, int(image.mean()))


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=40, size=image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def half_black(image: np.ndarray) -> np.ndarray:
    return np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, 0, image).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (brighter, "mean brightness"),
        (flat, "entropy of the grey levels"),
        (noisy, "mean difference between neighbouring pixels"),
        (half_black, "share of black pixels 5"),
        (half_black, "brightness of the lower minus the upper half"),
    ],
)
def test_unusual_pixels_are_named(gate: InputGate, change, said: str) -> None:
    images, shapes, features, _ = draw(2, patients=1, frames=3)
    changed = np.stack([change(image) for image in images])
    for found in gate.check(changed, shapes, features):
        assert any(sentence.startswith(said) for sentence in found.pixels), found


def test_a_sentence_holds_the_value_and_the_range(gate: InputGate) -> None:
    images, shapes, features, _ = draw(2, patients=1, frames=1)
    images = np.full_like(images, 250)
    summary = gate.summary()["pixels"]["brightness"]
    low, high = summary["low"], summary["high"]
    assert 40 < low < 100
    assert 140 < high < 200
    wanted = f"mean brightness 250.0 is outside {low:.1f} to {high:.1f} of the training pictures"
    assert wanted in gate.check(images, shapes, features)[0].pixels


@pytest.mark.parametrize(
    ("shape", "findings"),
    [
        ((256, 256), []),
        ((512, 512), []),
        ((128, 128), []),
        ((256, 320), []),
        ((320, 256), []),
        ((513, 513), ["longer side 513 px is outside 128 to 512 px"]),
        ((100, 100), ["longer side 100 px is outside 128 to 512 px"]),
        ((200, 400), ["width over height 2.00 is outside 0.80 to 1.25"]),
    ],
)
def test_size_and_aspect_of_the_source(gate: InputGate, shape: tuple, findings: list) -> None:
    images, _, features, _ = draw(3, patients=1, frames=1)
    for one in (gate, InputGate.from_tensors(gate.to_tensors())):
        [found] = one.check(images, np.array([shape]), features)
        assert found.source == found.sentences == findings


def test_distant_and_broken_features_are_flagged(gate: InputGate) -> None:
    images, shapes, features, _ = draw(4, patients=1, frames=2)
    features = features + 50.0
    features[1, 0] = np.nan
    far, broken = gate.check(images, shapes, features)
    [said] = far.features
    assert said.endswith("times the accepted distance from the training pictures")
    assert broken.sentences == ["the network's features are not finite"]


def test_distance_is_mahalanobis_under_probabilistic_pca() -> None:
    features = np.random.default_rng(0).normal(size=(300, 40)) * np.geomspace(9, 0.5, 40)
    distance = FeatureDistance.fit(features, [(np.arange(150), np.arange(150, 300))])
    pca = PCA(COMPONENTS, svd_solver="full").fit(features)
    centred = features - features.mean(axis=0)
    inverse = np.linalg.inv(pca.get_covariance())
    wanted = np.sqrt(np.einsum("ij,jk,ik->i", centred, inverse, centred))
    # The covariance of the components is exact, the randomised solver finds them nearly.
    np.testing.assert_allclose(distance.distances(features), wanted, rtol=0.05)


def test_limits_know_how_patients_differ() -> None:
    images, shapes, features, patients = draw(0, patients=15, frames=20, shift=3.0)
    by_patient = InputGate.fit(images, shapes, features, patients)
    one_each = InputGate.fit(images, shapes, features, np.arange(len(images)))
    assert by_patient.features.limit > 1.2 * one_each.features.limit


def test_round_trip_through_safetensors(gate: InputGate) -> None:
    read = InputGate.from_tensors(load(save(gate.to_tensors())))
    images, shapes, features, _ = draw(5, patients=4)
    images[::2] += 60
    features[::3] *= 4
    assert read.check(images, shapes, features) == gate.check(images, shapes, features)
    assert json.loads(json.dumps(read.summary())) == gate.summary()


def test_foreign_tensors_are_refused(gate: InputGate) -> None:
    tensors = gate.to_tensors()
    tensors["pixels.sharpness"] = tensors.pop("pixels.detail")
    with pytest.raises(ValueError, match=r"pixels\.detail, pixels\.sharpness"):
        InputGate.from_tensors(tensors)


def test_too_few_patients_and_broken_features_are_refused() -> None:
    images, shapes, features, patients = draw(0, patients=2)
    with pytest.raises(ValueError, match="3 patients or more, not 2"):
        InputGate.fit(images, shapes, features, patients)
    features[0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        InputGate.fit(images, shapes, features, np.arange(len(images)))


def test_a_gate_of_three_pictures_is_lenient_and_still_works() -> None:
    gate = InputGate.fit(*draw(0, patients=3, frames=1))
    images, shapes, features, _ = draw(1, patients=10, frames=1)
    assert all(np.isfinite(value).all() for value in gate.to_tensors().values())
    black = np.zeros_like(images)
    assert flagged_share(gate, images, shapes, features) < 1
    assert flagged_share(gate, black, shapes, features) == 1


def test_measures_of_known_pictures() -> None:
    picture = np.zeros((8, 8, 1), np.uint8)
    picture[4:] = 255
    values = dict(zip(MEASURES, image_measures(picture[None])[0], strict=True))
    assert values == {
        "brightness": 127.5,
        "contrast": 127.5,
        "dark_percent": 50,
        "bright_percent": 50,
        "entropy_bits": 1,
        "detail": pytest.approx(255 / 7 / 2),
        "lower_upper": 255,
        "right_left": 0,
        "centre_border": 0,
        "colour": 0,
    }


def test_colour_is_measured_and_grey_in_three_channels_is_grey() -> None:
    grey = draw(0, patients=2, frames=1)[0]
    repeated = np.repeat(grey, 3, axis=3)
    np.testing.assert_array_equal(image_measures(repeated), image_measures(grey))
    tinted = repeated.copy()
    tinted[..., 0] //= 2
    assert (image_measures(tinted)[:, list(MEASURES).index("colour")] > 40).all()


@pytest.mark.samples
def test_phantom_gate_against_real_pictures(samples: Path) -> None:
    """Fitted on phantom angiograms: ECGs, echo and photographs are flagged, new phantoms pass."""
    sources = {
        "phantoms": phantom_pictures(16, seed=2)[0],
        "ecg": [frame for path in ecg_files(samples) for frame in read_frames(path.read_bytes())],
        "echo": echo_pictures(samples),
        "photographs": [
            picture
            for name in ("astronaut", "camera", "coffee", "chelsea", "rocket", "retina", "coins")
            for picture in read_frames(png(getattr(pictures, name)()))
        ],
    }
    images, patients = phantom_pictures(40, seed=1)
    torch.manual_seed(0)
    settings = ImageModelConfig(backbone="mobilenetv3large", pretrained="none")
    model = ImageClassifier(settings, channels=1, outputs=("ffr",)).eval()
    gate = InputGate.fit(*as_input(model, images), patients)
    shares = {
        name: flagged_share(gate, *as_input(model, images)) for name, images in sources.items()
    }
    assert shares.pop("phantoms") <= 0.05
    assert min(shares.values()) >= 0.95, shares


def phantom_pictures(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    preset = replace(PRESETS.get("standard"), ["frames_per_patient=2"])
    drawn = [draw_patient(index, seed, preset) for index in range(count)]
    frames = [render_frames(patient, preset) for patient in drawn]
    names = np.repeat([patient.patient_id for patient in drawn], [len(run) for run in frames])
    return [frame for run in frames for one in run for frame in read_frames(png(one))], names


def ecg_files(samples: Path) -> list[Path]:
    return sorted((samples / "ecg_images").glob("*.[jp][pn]g"))[::3]


def echo_pictures(samples: Path) -> list[np.ndarray]:
    frames = []
    for path in sorted((samples / "echo_dicom").glob("*.dcm")):
        run = read_frames(path.read_bytes())
        frames += run[:: max(1, len(run) // 4)]
    for path in sorted((samples / "camus").glob("*/*_4CH_ED.nii.gz"))[::5]:
        pixels = np.asarray(nibabel.load(path).dataobj).squeeze().T.astype(np.uint8)
        frames += read_frames(png(pixels))
    return frames


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def as_input(model: ImageClassifier, frames: list[np.ndarray]) -> tuple:
    preprocess = ImagePreprocess(image_size=96)
    images = np.stack([preprocess.apply(frame) for frame in frames])
    shapes = np.array([frame.shape[:2] for frame in frames])
    with torch.inference_mode():
        pieces = [model.features(torch.from_numpy(part)) for part in np.array_split(images, 8)]
    return images, shapes, torch.cat(pieces).numpy()
