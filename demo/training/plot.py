"""The picture of a training run: loss and the share of right answers over the tokens seen.

Knows nothing of the model, only of the run's log.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw(log: Path, picture: Path) -> None:
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    tokens = [entry["tokens"] / 1e6 for entry in entries]
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for name, label in (("loss", "training"), ("held_out_loss", "held out")):
        above.plot(tokens, [entry[name] for entry in entries], label=label)
    above.set(yscale="log", ylabel="cross entropy of the answers")
    for kind in entries[-1]["right"]:
        below.plot(tokens, [entry["right"].get(kind) for entry in entries], label=kind)
    below.set(ylabel="held-out answers without a wrong token", xlabel="million tokens")
    quantized = [entry["tokens"] / 1e6 for entry in entries if entry["quantized"]]
    for axes in (above, below):
        if quantized:
            axes.axvline(quantized[0], color="grey", linestyle="dashed", label="INT4 experts from here")
        axes.legend(fontsize="small")
    figure.savefig(picture)
