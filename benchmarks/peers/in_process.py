"""`cardioray.load(BUNDLE).predict([picture])`, without any server.

Prints the seconds of each call on the first picture, and what every picture's probability is in
fp32 PyTorch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cardioray
from benchmarks.peers.common import bundle_folder

WARM_CALLS = 20


def main() -> None:
    calls, *files = sys.argv[1:]
    pictures = [Path(file).read_bytes() for file in files]
    predictor = cardioray.load(bundle_folder())
    for _ in range(WARM_CALLS):
        predictor.predict([pictures[0]])
    seconds = []
    for _ in range(int(calls)):
        begun = time.perf_counter()
        predictor.predict([pictures[0]])
        seconds.append(time.perf_counter() - begun)
    exact = cardioray.load(bundle_folder(), runtime="torch", precision="fp32")
    probabilities = [exact.predict([picture])["ffr"]["probability"] for picture in pictures]
    print(json.dumps({"seconds": seconds, "probabilities": probabilities}))


if __name__ == "__main__":
    main()
