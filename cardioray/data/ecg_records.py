"""Recorded signals: DICOM waveforms, and WFDB records as an archive of their files."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from cardioray import storage
from cardioray.data.ecg_leads import LEADS, PAGE_SECONDS, EcgSignals
from cardioray.data.frames import UnreadableImage, damage_explained

# Signals of any rate are brought to it.
RATE_HZ = 500.0
_MOST_SAMPLES = 500 * 60 * 60
_MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "v": 1e3, "nv": 1e-6, "": 1.0}
_DAMAGED = "The record of signals cannot be read"


def is_archive(data: bytes) -> bool:
    """Whether a file is a ZIP archive, as WFDB records come in."""
    return data[:4] == b"PK\x03\x04"


def pack_record(path: str) -> bytes:
    """A WFDB header and the signals beside it as one archive.

    Args:
        path: of the .hea file; local or s3://.

    Raises:
        UnreadableImage: when the header names files in another folder.
        FileNotFoundError: when a file does not exist.
    """
    header = storage.read_bytes(path)
    folder, _, name = path.rpartition("/")
    lines = [line for line in header.decode("latin-1").splitlines() if line[:1] not in ("#", "")]
    names = sorted({line.split()[0] for line in lines[1:]})
    if not names or any("/" in each or "\\" in each or each == "~" for each in names):
        raise UnreadableImage(f"{name} names no file of signals beside it.")
    packed = io.BytesIO()
    places = {each: storage.join(folder, each) if folder else each for each in names}
    # Some records have further signals in a file that is left out; the leads are asked for later.
    there = {each: place for each, place in places.items() if storage.exists(place)}
    if not there:
        raise FileNotFoundError(f"{path} names {', '.join(names)}, and none of them exists.")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, header)
        for each, place in there.items():
            archive.writestr(each, storage.read_bytes(place))
    return packed.getvalue()


def read_archive(data: bytes) -> EcgSignals:
    """The twelve leads of a WFDB record in a ZIP archive.

    Raises:
        UnreadableImage: when there is no record, or several, or leads are missing.
    """
    import wfdb  # brings much along that other files need not wait for

    with damage_explained(_DAMAGED):
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = [item for item in archive.infolist() if not item.is_dir()]
        headers = [item.filename for item in members if item.filename.endswith(".hea")]
        if len(headers) != 1:
            raise UnreadableImage(
                f"The archive holds {len(headers)} WFDB headers (.hea); one record is needed."
            )
        if sum(item.file_size for item in members) > 4 * len(LEADS) * _MOST_SAMPLES:
            raise UnreadableImage("The archive holds more than an hour of signals.")
        # The reader takes paths only; nothing outlives this block.
        with tempfile.TemporaryDirectory(prefix="cardioray-wfdb-") as folder:
            for item in members:
                (Path(folder) / Path(item.filename).name).write_bytes(archive.read(item))
            place = Path(folder) / Path(headers[0]).name
            found = wfdb.rdheader(str(place.with_suffix("")))
            # Only these are read: other signals may lie in files that are not there.
            plain = [_plain(each) for each in found.sig_name]
            leads = [plain.index(each.lower()) for each in LEADS if each.lower() in plain]
            # A header may name any file of this machine.
            own = {Path(item.filename).name for item in members}
            if missing := sorted({found.file_name[lead] for lead in leads} - own):
                raise UnreadableImage(
                    f"The archive lacks {', '.join(missing)}, where its header says signals are."
                )
            record = wfdb.rdrecord(
                str(place.with_suffix("")),
                channels=leads or None,
                sampto=min(found.sig_len, round(found.fs * PAGE_SECONDS) + 1),
            )
    values = np.asarray(record.p_signal, float).T
    return _twelve(values, list(record.sig_name), list(record.units), float(record.fs))


def is_waveform(data: bytes) -> bool:
    """Whether a DICOM file holds signals rather than a picture."""
    import pydicom

    with damage_explained(_DAMAGED):
        found = pydicom.dcmread(io.BytesIO(data), specific_tags=["WaveformSequence"])
        return "WaveformSequence" in found


def read_waveform(data: bytes) -> EcgSignals:
    """The twelve leads of a DICOM waveform; no other tag is read.

    Of several groups of signals the first one with all leads counts: the others are beats and
    medians.

    Raises:
        UnreadableImage: when it is damaged, or no group has all leads.
    """
    import pydicom

    with damage_explained(_DAMAGED):
        tags = ["WaveformSequence", "SpecificCharacterSet"]
        dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=tags)
        missing = "it has no signals"
        for number, group in enumerate(dataset.WaveformSequence):
            names = [_channel_name(channel) for channel in group.ChannelDefinitionSequence]
            lacking = [lead for lead in LEADS if lead.lower() not in names]
            if lacking:
                missing = f"it lacks the lead(s) {', '.join(lacking)}"
                continue
            values = dataset.waveform_array(number).T
            units = [_channel_unit(channel) for channel in group.ChannelDefinitionSequence]
            return _twelve(values, names, units, float(group.SamplingFrequency))
    raise UnreadableImage(f"The waveform is no 12-lead ECG: {missing}.")


def _channel_name(channel: object) -> str:
    source = channel.ChannelSourceSequence[0]  # type: ignore[attr-defined]
    return _plain(str(source.get("CodeMeaning") or ""))


def _channel_unit(channel: object) -> str:
    units = channel.get("ChannelSensitivityUnitsSequence")  # type: ignore[attr-defined]
    return str(units[0].CodeValue) if units else "mV"


def _plain(name: str) -> str:
    """A lead's name in small letters, without what recorders put around it."""
    words = name.lower().replace("(einthoven)", "").replace("lead", "").split()
    return "".join(words)


def _twelve(
    values: NDArray[np.float64], names: list[str], units: list[str], rate_hz: float
) -> EcgSignals:
    """Signals of any order, unit and rate as twelve leads in mV at `RATE_HZ`."""
    plain = [_plain(name) for name in names]
    lacking = [lead for lead in LEADS if lead.lower() not in plain]
    if lacking:
        raise UnreadableImage(
            f"The record lacks the lead(s) {', '.join(lacking)}; it has {', '.join(names)}."
        )
    rows = []
    for lead in LEADS:
        place = plain.index(lead.lower())
        unit = units[place].lower().replace("µ", "u")
        if unit not in _MILLIVOLTS:
            raise UnreadableImage(f"Lead {lead} is in {units[place]!r}, not in mV, uV or V.")
        rows.append(np.nan_to_num(values[place]) * _MILLIVOLTS[unit])
    if rate_hz <= 0:
        raise UnreadableImage(f"The record states a rate of {rate_hz:g} Hz.")
    signals = np.stack(rows)[:, : round(rate_hz * PAGE_SECONDS) + 1]
    if signals.shape[1] < round(rate_hz * PAGE_SECONDS) - 1:
        raise UnreadableImage(
            f"The record is {signals.shape[1] / rate_hz:.1f} s long; {PAGE_SECONDS:.0f} s are "
            "needed for a page."
        )
    if rate_hz != RATE_HZ:
        signals = resample_poly(signals, round(RATE_HZ * 10), round(rate_hz * 10), axis=1)
    wanted = round(RATE_HZ * PAGE_SECONDS)
    signals = np.pad(signals, ((0, 0), (0, 2)), mode="edge")[:, :wanted]
    return EcgSignals(signals.astype(np.float32), RATE_HZ, np.zeros(len(LEADS)))
