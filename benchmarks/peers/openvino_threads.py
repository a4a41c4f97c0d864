"""FastAPI and OpenVINO: the bundle's own export, one infer request for each thread of the pool.

OpenVINO's defaults are kept; on CPUs with bf16 they compute in bf16, as CardioRay does.
"""

from __future__ import annotations

import threading
from typing import Annotated

import numpy as np
import openvino as ov
from fastapi import FastAPI, File, UploadFile

from benchmarks.peers.common import bundle_folder, read_picture

app = FastAPI()
network = ov.Core().compile_model(bundle_folder() / "openvino" / "model.xml", "CPU")
own = threading.local()


@app.post("/predict")
def predict(file: Annotated[UploadFile, File()]) -> dict[str, float]:
    if not hasattr(own, "request"):
        own.request = network.create_infer_request()
    picture = read_picture(file.file.read())
    logit = own.request.infer([picture[None]])[network.output("ffr")][0]
    return {"probability": float(1 / (1 + np.exp(-np.float64(logit))))}
