"""Recorded signals: WFDB archives and DICOM waveforms, in mV at one rate."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import wfdb
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from cardioray.data.ecg_leads import LEADS
from cardioray.data.ecg_records import (
    is_archive,
    is_waveform,
    pack_record,
    read_archive,
    read_waveform,
)
from cardioray.data.frames import UnreadableImage
from cardioray.phantoms.ecg_heart import Heart, record

TRUTH = record(Heart(), np.random.default_rng(0), noise_mv=0.0, wander_mv=0.0).millivolts


def write_record(
    folder: Path, names: tuple[str, ...], values: NDArray[np.floating], rate: int, unit: str
) -> Path:
    wfdb.wrsamp(
        "heart",
        fs=rate,
        units=[unit] * len(names),
        sig_name=list(names),
        p_signal=np.asarray(values, float).T,
        fmt=["16"] * len(names),
        write_dir=str(folder),
    )
    return folder / "heart.hea"


def waveform(
    values: NDArray[np.floating], names: tuple[str, ...] = LEADS, rate: int = 500
) -> bytes:
    """A DICOM 12-lead ECG in steps of 1 uV."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.9.1.1")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName = "Doe^Jane"
    group = Dataset()
    group.WaveformOriginality = "ORIGINAL"
    group.NumberOfWaveformChannels = len(names)
    group.NumberOfWaveformSamples = values.shape[1]
    group.SamplingFrequency = rate
    group.WaveformBitsAllocated = 16
    group.WaveformSampleInterpretation = "SS"
    channels = []
    for name in names:
        channel, source, unit = Dataset(), Dataset(), Dataset()
        source.CodeValue, source.CodingSchemeDesignator = "2:1", "MDC"
        source.CodeMeaning = f"Lead {name}"
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "uV", "UCUM", "microvolt"
        channel.ChannelSourceSequence = [source]
        channel.ChannelSensitivity = "1"
        channel.ChannelSensitivityUnitsSequence = [unit]
        channel.ChannelSensitivityCorrectionFactor = "1"
        channel.ChannelBaseline = "0"
        channel.ChannelSampleSkew = "0"
        channel.WaveformBitsStored = 16
        channels.append(channel)
    group.ChannelDefinitionSequence = channels
    group.WaveformData = np.round(values.T * 1000).astype("<i2").tobytes()
    dataset.WaveformSequence = [group]
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


class TestArchive:
    @pytest.mark.parametrize(("rate", "unit", "factor"), [(500, "mV", 1.0), (500, "uV", 1e3)])
    def test_leads_of_any_order_and_unit_are_read(
        self, tmp_path: Path, rate: int, unit: str, factor: float
    ) -> None:
        names = tuple(name.lower() for name in LEADS[::-1])
        data = pack_record(str(write_record(tmp_path, names, TRUTH[::-1] * factor, rate, unit)))
        assert is_archive(data)
        np.testing.assert_allclose(read_archive(data).millivolts, TRUTH, atol=2e-3)

    def test_another_rate_is_brought_to_the_common_one(self, tmp_path: Path) -> None:
        data = pack_record(str(write_record(tmp_path, LEADS, TRUTH[:, ::2], 250, "mV")))
        found = read_archive(data)
        assert (found.rate_hz, found.millivolts.shape) == (500.0, (12, 5000))
        for own, true in zip(found.millivolts, TRUTH, strict=True):
            assert np.corrcoef(own[50:-50], true[50:-50])[0, 1] > 0.98

    def test_a_missing_lead_is_named(self, tmp_path: Path) -> None:
        data = pack_record(str(write_record(tmp_path, LEADS[:11], TRUTH[:11], 500, "mV")))
        with pytest.raises(UnreadableImage, match=r"lacks the lead\(s\) V6"):
            read_archive(data)

    def test_a_short_record_is_refused(self, tmp_path: Path) -> None:
        data = pack_record(str(write_record(tmp_path, LEADS, TRUTH[:, :2000], 500, "mV")))
        with pytest.raises(UnreadableImage, match=r"4\.0 s long"):
            read_archive(data)

    def test_an_archive_of_something_else_is_refused(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("letter.docx", b"Dear colleague")
        with pytest.raises(UnreadableImage, match=r"0 WFDB headers"):
            read_archive(packed.getvalue())
        with pytest.raises(UnreadableImage, match="cannot be read"):
            read_archive(packed.getvalue()[:40])

    def test_nothing_outside_it_is_read_or_written(self, tmp_path: Path) -> None:
        header = write_record(tmp_path, LEADS, TRUTH, 500, "mV").read_text()
        for elsewhere, said in (
            ("../../heart.dat", "cannot be read"),
            (str(tmp_path / "heart.dat"), "cannot be read"),
            ("other.dat", "lacks other.dat, where its header says"),
        ):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("heart.hea", header.replace("heart.dat", elsewhere))
                archive.writestr("../../heart.dat", (tmp_path / "heart.dat").read_bytes())
            with pytest.raises(UnreadableImage, match=said):
                read_archive(packed.getvalue())


class TestWaveform:
    def test_twelve_leads_are_read_in_millivolts(self) -> None:
        data = waveform(TRUTH)
        assert is_waveform(data)
        np.testing.assert_allclose(read_waveform(data).millivolts, TRUTH, atol=1e-3)

    def test_a_missing_lead_is_named(self) -> None:
        with pytest.raises(UnreadableImage, match=r"lacks the lead\(s\) V5, V6"):
            read_waveform(waveform(TRUTH[:10], LEADS[:10]))

    def test_a_damaged_file_is_refused(self) -> None:
        with pytest.raises(UnreadableImage, match="cannot be read"):
            read_waveform(waveform(TRUTH)[:-70_000])


@pytest.mark.samples
def test_real_records_are_read(samples: Path) -> None:
    found = read_archive(pack_record(str(samples / "ecg_signals_cinc2021" / "E07500.hea")))
    assert 0.5 < np.abs(found.millivolts).max() < 5
    # A record that has further signals in a file which is not there.
    other = read_archive(pack_record(str(samples / "ecg_signals_ptbdb" / "s0010_re.hea")))
    assert other.millivolts.shape == (12, 5000)
    dicom = (samples / "ecg_dicom_pdf" / "anonymous_ecg.dcm").read_bytes()
    assert 0.5 < np.abs(read_waveform(dicom).millivolts).max() < 5
