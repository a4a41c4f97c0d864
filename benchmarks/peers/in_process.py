"""`cardioray.load(BUNDLE).predict([picture])`, without any server: seconds of each call."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cardioray
from benchmarks.peers.common import bundle_folder

WARM_CALLS = 20


def main() -> None:
    picture, calls = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
    predictor = cardioray.load(bundle_folder())
    for _ in range(WARM_CALLS):
        answer = predictor.predict([picture])
    seconds = []
    for _ in range(calls):
        begun = time.perf_counter()
        answer = predictor.predict([picture])
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "probability": answer["ffr"]["probability"]}))


if __name__ == "__main__":
    main()
