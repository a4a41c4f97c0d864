"""LitServe: its four steps, eager PyTorch, batches of up to eight."""

import sys

import litserve
import torch
from fastapi import Request
from torch import Tensor

from benchmarks.peers.common import load_network, read_picture

MAX_BATCH_SIZE = 8
# LitServe takes what is there when a batch begins; without any wait batches hold one picture.
BATCH_TIMEOUT_S = 0.01


class Answerer(litserve.LitAPI):
    """The steps LitServe calls in its worker process."""

    def setup(self, device: str) -> None:
        network, self.to_input = load_network()
        self.network = network.to(device)

    # LitServe makes the route from this annotation, though it hands over the parsed form.
    def decode_request(self, request: Request) -> Tensor:
        return self.to_input(read_picture(request["file"].file.read()))

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.sigmoid(self.network(x)["ffr"])

    def unbatch(self, output: Tensor) -> list[float]:
        return [float(value) for value in output]

    def encode_response(self, output: float) -> dict[str, float]:
        return {"probability": output}


if __name__ == "__main__":
    answerer = Answerer(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(answerer, accelerator="cpu", devices=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
