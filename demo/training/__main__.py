"""``python -m expertfleet.demo.training --out DIR``: trains nano-k2 and exports its checkpoint.

Knows nothing of serving. The state is saved as it goes, so the same command continues after an interruption;
``--start-from`` goes on from a checkpoint, with other dialogues (``--seed``) than those it was trained on. The last part of the tokens is trained with the experts' weights quantised to INT4, and the learning rate falls to zero.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..dialogues.mixture import make_dialogue, make_exercise, make_spelling
from .checkpoint import export, prepare, renderer, take_vocabulary, take_weights
from .model import NanoK2
from .optimizer import make_optimizers
from .plot import draw
from .samples import Batch, Sample, batches, wanted_places
from .tally import Tally

_STATE = "state.pt"
_LOG = "log.jsonl"
_PLOT = "training.svg"
_BIAS_STEP = 1e-2
_WARMUP_TOKENS = 150_000
_VALIDATION = 1 << 40
_MAX_LENGTH = 8192
_LOGITS_STEP = 256
_SHORT = 256
_SPELLING_EVERY = 5
_SEEDS_OF_A_RUN = 10_000_000


class Trainer:
    def __init__(self, out: Path, arguments: argparse.Namespace) -> None:
        self._out, self._arguments = out, arguments
        if arguments.start_from:
            take_vocabulary(arguments.start_from, out)
        config = prepare(out, arguments.vocabulary_dialogues)
        self.pad = config.pad_token_id or 0
        self._device: torch.device = arguments.device
        torch.manual_seed(arguments.seed)
        with self._device:
            self.model = NanoK2(config, _MAX_LENGTH)
        self._optimizers = make_optimizers(self.model, arguments.lr, arguments.weight_decay)
        self._renderer = renderer(out)
        self.tokens = self.steps = 0
        self.next_seed = arguments.seed * _SEEDS_OF_A_RUN
        if (out / _STATE).exists():
            self._restore(torch.load(out / _STATE, map_location=self._device, weights_only=True))
        elif arguments.start_from:
            take_weights(arguments.start_from, self.model)

    def run(self) -> None:
        total, every = self._arguments.tokens, self._arguments.save_every
        data = batches(self._samples(), self._arguments.batch_tokens, self.pad, random.Random(self.next_seed).shuffle)
        saved = time.monotonic()
        with tqdm(total=total, initial=self.tokens, unit="tok", unit_scale=True, mininterval=5) as bar:
            smooth = None
            while self.tokens < total:
                batch = next(data)
                loss = self.step(batch)
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                bar.update(int(batch.present.sum()))
                bar.set_postfix(loss=f"{smooth:.4f}", lr=f"{self._progress():.2f}", refresh=False)
                if self.steps % self._arguments.check_every == 0:
                    self._log({"loss": smooth, **self.validate()})
                if time.monotonic() - saved > every:
                    self.save()
                    saved = time.monotonic()
        self.save()
        self._log({"loss": smooth, **self.validate()})

    def step(self, batch: Batch) -> float:
        self.model.quantize_experts(self._quantized())
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._progress()
        loss, _ = self._loss(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._balance()
        self.tokens += int(batch.present.sum())
        self.steps += 1
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, dialogues: int = 400) -> dict[str, object]:
        """On the space kept out of training: the loss, and what a Tally counts."""
        samples = (self._renderer.render(make_dialogue(_VALIDATION + index, True)) for index in range(dialogues))
        tally, losses = Tally(self.model), []
        for batch in batches(samples, self._arguments.batch_tokens, self.pad, lambda ready: None):
            loss, hits = self._loss(batch)
            losses.append(float(loss))
            tally.add(batch, hits)
        return {
            "held_out_loss": sum(losses) / len(losses),
            "right": {kind: round(share, 3) for kind, share in tally.right.items()},
            "load": [round(load, 2) for load in tally.load_max_to_mean],
        }

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": [self.tokens, self.steps, self.next_seed],
        }
        partial = self._out / f"{_STATE}.partial"
        torch.save(state, partial)
        partial.rename(self._out / _STATE)

    def _restore(self, state: dict[str, object]) -> None:
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):  # type: ignore[call-overload]
            optimizer.load_state_dict(saved)
        self.tokens, self.steps, self.next_seed = state["progress"]  # type: ignore[misc]

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross entropy of the learned tokens, and whether each was the likeliest, on the CPU."""
        batch = batch.to(self._device)
        target = batch.ids[batch.learned]
        # Like all shapes, the number of logits is one of few.
        wanted = F.pad(wanted_places(batch), (0, -len(target) % _LOGITS_STEP))
        logits = self.model(batch.ids, batch.present, wanted)[: len(target)]
        return F.cross_entropy(logits, target), (logits.detach().argmax(-1) == target).cpu()

    def _samples(self) -> Iterator[Sample]:
        pieces = self._renderer.pieces
        for seed in itertools.count(self.next_seed):
            self.next_seed = seed + 1
            if seed % _SPELLING_EVERY == 0:
                yield self._renderer.render(make_spelling(seed, pieces))
            elif self.tokens >= self._arguments.exercise_tokens:
                yield self._renderer.render(make_dialogue(seed, pieces=pieces))
            else:
                sample = self._renderer.render(make_exercise(seed))
                if len(sample.ids) <= _SHORT:
                    yield sample

    def _balance(self) -> None:
        """DeepSeek-V3's loss-free balancing: the selection bias of a busy expert falls, of an idle one rises."""
        for mixture in self.model.mixtures():
            bias = mixture.gate.e_score_correction_bias
            bias += _BIAS_STEP * (1 - mixture.loads / mixture.loads.mean()).clamp(-1, 1)
            mixture.loads.zero_()

    def _quantized(self) -> bool:
        return bool(self.tokens >= (1 - self._arguments.quantized_share) * self._arguments.tokens)

    def _progress(self) -> float:
        """The share of the learning rate: warm-up, then constant, then a linear fall to (nearly) zero."""
        decay_from = (1 - self._arguments.decay_share) * self._arguments.tokens
        falling = (self._arguments.tokens - self.tokens) / (self._arguments.tokens - decay_from)
        rising = (self.tokens + 1) / _WARMUP_TOKENS
        return float(max(0.01, min(1.0, rising, falling)))

    def _log(self, entry: dict[str, object]) -> None:
        entry = {"tokens": self.tokens, "steps": self.steps, "quantized": self._quantized(), **entry}
        line = json.dumps(entry)
        tqdm.write(line, file=sys.stderr)
        with (self._out / _LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def _device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise argparse.ArgumentTypeError(f"{name!r} is not cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{name!r}: PyTorch can use {torch.cuda.device_count()} GPUs here")
    return torch.device(name)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m expertfleet.demo.training", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the state, the log and the checkpoint")
    parser.add_argument("--start-from", type=Path, help="folder of a nano-k2 whose weights and vocabulary are taken")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=_device, default=best, help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=35_000_000, help="how many to train on (default: 35 million)")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--exercise-tokens", type=int, default=800_000, help="first part, to learn copying")
    parser.add_argument("--decay-share", type=float, default=0.6, help="last part, with a falling learning rate")
    parser.add_argument("--quantized-share", type=float, default=0.15, help="last part, with INT4 experts")
    parser.add_argument("--vocabulary-dialogues", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check-every", type=int, default=250, help="steps between two checks on held-out dialogues")
    parser.add_argument("--save-every", type=float, default=300.0, help="seconds between two saves")
    arguments = parser.parse_args()
    # Every shape's product is compiled once; the library's default keeps too few of them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.out, arguments)
    trainer.run()
    export(arguments.out, trainer.model)
    draw(arguments.out / _LOG, arguments.out / _PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
