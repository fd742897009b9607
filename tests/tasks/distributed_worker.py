"""One process of a distributed run: `ganglion fit` that also writes the loss of every step to FILE.<rank>.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ganglion.tasks import classification, fit


def main(file: str, argv: list[str]) -> int:
    losses: list[float] = []
    compute = classification.Classification.loss

    def loss(self, batch):
        value = compute(self, batch)
        losses.append(value.item())
        return value

    classification.Classification.loss = loss
    status = fit.main(argv)
    Path(f"{file}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(losses))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
