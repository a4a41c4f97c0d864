"""Clips as video files: MJPG in AVI, the container of EchoNet, and MP4 for a browser."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Quantiser of every frame, 2 (finest) to 31: at 3, speckle differs by 1 to 2 grey levels.
_MJPEG_QUALITY = "3"

# Macroblock trees make other bytes of the same frames from run to run.
_H264 = {"crf": "18", "x264-params": "mbtree=0"}


def encode_video(
    frames: NDArray[np.uint8], fps: float, kind: Literal["avi", "mp4"] = "avi"
) -> bytes:
    """A video file with these frames.

    Args:
        frames: (T, H, W), (T, H, W, 1) or (T, H, W, 3), RGB; even sides for "mp4".
        fps: frames a second.
        kind: "avi" holds MJPG, every frame by itself; "mp4" H.264, which browsers play.

    Returns:
        The content of the file.
    """
    import av  # encoders and all; readers of shards need none of it

    if frames.ndim == 4 and frames.shape[3] == 1:
        frames = frames[..., 0]
    stream = io.BytesIO()
    with av.open(stream, mode="w", format=kind) as container:
        rate = Fraction(fps).limit_denominator(1001)
        if kind == "avi":
            options = {"qmin": _MJPEG_QUALITY, "qmax": _MJPEG_QUALITY}
            video = container.add_stream("mjpeg", rate=rate, options=options)
            video.pix_fmt = "yuvj420p"
        else:
            video = container.add_stream("libx264", rate=rate, options=_H264)
            video.pix_fmt = "yuv420p"
        video.height, video.width = frames.shape[1:3]
        video.codec_context.thread_count = 1
        layout = "gray" if frames.ndim == 3 else "rgb24"
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
            for packet in video.encode(frame):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
    return stream.getvalue()
