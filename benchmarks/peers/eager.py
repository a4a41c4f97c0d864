"""FastAPI and eager PyTorch, the way notebooks do it: one picture, one forward pass, at once."""

from __future__ import annotations

from typing import Annotated

import torch
from fastapi import FastAPI, File, UploadFile

from benchmarks.peers.common import load_network, read_picture

app = FastAPI()
network, to_input = load_network()


@app.post("/predict")
async def predict(file: Annotated[UploadFile, File()]) -> dict[str, float]:
    picture = to_input(read_picture(await file.read()))
    with torch.no_grad():
        logit = network(picture[None])["ffr"]
    return {"probability": float(torch.sigmoid(logit)[0])}
