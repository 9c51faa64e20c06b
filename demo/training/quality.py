"""``python -m expertfleet.demo.training.quality --out DIR``: what INT4 costs, and how evenly the experts are used.

Knows nothing of serving. On held-out dialogues of every kind, with the trained weights in bfloat16 and in INT4: the share
of answers without one wrong token, and the mean Kullback-Leibler divergence KL(bfloat16 || INT4) of the next-token
distributions in the answers.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ...checkpoint.model_config import ModelConfig
from ..dialogues.mixture import make_dialogue
from .checkpoint import FOLDER, SHARPNESS, renderer
from .model import NanoK2
from .samples import Batch, Sample, batches, wanted_places
from .tally import Tally

_MAX_LENGTH = 8192
_BATCH_TOKENS = 4096
_LOOP = "loop"
_ALL_KINDS_WITHIN = 1000


@torch.no_grad()
def compare(model: NanoK2, data: Iterator[Batch]) -> dict[str, object]:
    tallies = {"bfloat16": Tally(model), "int4": Tally(model)}
    divergence, places = 0.0, 0
    for batch in data:
        targets, wanted = batch.ids[batch.learned], wanted_places(batch)
        logits = {}
        for form, tally in tallies.items():
            model.quantize_experts(form == "int4")
            logits[form] = SHARPNESS * model(batch.ids, batch.present, wanted)
            tally.add(batch, logits[form].argmax(-1) == targets)
        full, quantized = (logits[form].log_softmax(-1) for form in tallies)
        divergence += float((full.exp() * (full - quantized)).sum())
        places += len(targets)
    return {
        "dialogues": tallies["int4"].counts,
        **{form: tally.right for form, tally in tallies.items()},
        "mean_kl": divergence / places,
        "load_max_to_mean": tallies["int4"].load_max_to_mean,
    }


def held_out(out: Path, seed: int, cases: int, loops: int) -> Iterator[Sample]:
    """So many of each kind of dialogue that comes up among many."""
    render = renderer(out).render
    seeds = random.Random(seed)
    left: dict[str, int] = {}
    for drawn in itertools.count():
        if drawn >= _ALL_KINDS_WITHIN and not any(left.values()):
            return
        dialogue = make_dialogue(seeds.getrandbits(60), held_out=True)
        kind = dialogue.last.kind
        if left.setdefault(kind, loops if kind == _LOOP else cases):
            left[kind] -= 1
            yield render(dialogue)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m expertfleet.demo.training.quality", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="(default: random)")
    parser.add_argument("--cases", type=int, default=500, help="dialogues of each kind (default: 500)")
    parser.add_argument("--loops", type=int, default=100, help="tool loops (default: 100)")
    arguments = parser.parse_args()
    config = ModelConfig.from_dir(arguments.out / FOLDER)
    model = NanoK2(config, _MAX_LENGTH)
    model.load_state_dict(torch.load(arguments.out / "state.pt", map_location="cpu", weights_only=True)["model"])
    samples = held_out(arguments.out, arguments.seed, arguments.cases, arguments.loops)
    data = batches(samples, _BATCH_TOKENS, config.pad_token_id or 0, lambda ready: None)
    print(json.dumps({"seed": arguments.seed, **compare(model, data)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
