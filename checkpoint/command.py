"""``expertfleet checkpoint make-tiny`` and ``expertfleet checkpoint check``.

Knows nothing of serving. A fault is one line on standard error and exit status 1; progress goes to standard error.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .chat_template import ChatTemplate
from .check import check
from .files import CheckpointFiles
from .generation import GenerationDefaults
from .make_tiny import make_tiny
from .tiny_config import SHAPES, TinyShape, option_name
from .tokenizer import Tokenizer

_REPORT_INTERVAL_S = 0.5

_HELP = {
    "hidden": "hidden size",
    "layers": "layers, the dense ones included",
    "dense_layers": "first layers without experts",
    "experts": "routed experts per layer",
    "top_k": "experts per token",
    "expert_width": "intermediate size of an expert",
    "dense_width": "intermediate size of a dense layer",
    "shared_experts": "experts that every token uses",
    "heads": "attention heads",
    "q_lora_rank": "rank of the query's down projection; 0 projects directly",
    "kv_lora_rank": "rank of the cached latent",
    "nope_head_dim": "head dimensions without position",
    "rope_head_dim": "head dimensions with position",
    "v_head_dim": "head dimensions of the values",
    "groups": "expert groups of the router",
    "topk_groups": "groups that a token may choose from",
    "vocab": "vocabulary size, 256 control tokens included",
    "context": "max_position_embeddings",
}


def add_parser(subparsers: Any) -> None:
    """Adds ``checkpoint`` with its own verbs; the chosen one's ``run`` is in ``args.run``."""
    parser = subparsers.add_parser("checkpoint", help="make and check checkpoints")
    verbs = parser.add_subparsers(dest="verb", required=True)
    tiny = verbs.add_parser("make-tiny", help="write a random checkpoint in the published format")
    tiny.add_argument("directory", type=Path, metavar="DIR")
    tiny.add_argument("--seed", type=int, default=0, help="same seed and options, same bytes (default: 0)")
    tiny.add_argument("--like", choices=sorted(SHAPES), help="start from this model's dimensions")
    for field in dataclasses.fields(TinyShape):
        text = f"{_HELP[field.name]} (default: {field.default}, or what --like says)"
        tiny.add_argument(option_name(field.name), type=int, metavar="N", help=text)
    tiny.set_defaults(run=run)
    checker = verbs.add_parser("check", help="check names, shapes, dtypes and scales of a checkpoint")
    checker.add_argument("directory", type=Path, metavar="DIR")
    checker.add_argument("--threads", type=int, default=4, help="reading threads (default: 4)")
    checker.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        return _make_tiny(args) if args.verb == "make-tiny" else _check(args)
    except (ValueError, OSError) as error:
        print(f"expertfleet checkpoint {args.verb}: {error}", file=sys.stderr)
        return 1


def _make_tiny(args: argparse.Namespace) -> int:
    dimensions = {field.name: getattr(args, field.name) for field in dataclasses.fields(TinyShape)}
    config = make_tiny(args.directory, seed=args.seed, like=args.like, progress=_progress("written"), **dimensions)
    experts = len(config.moe_layers) * config.num_experts
    print(f"{args.directory}: {config.num_layers} layers, {experts} experts of {config.expert_bytes} bytes, random")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: must be 1 or more")
    with CheckpointFiles.open(args.directory) as checkpoint:
        report = check(checkpoint, _progress("checked"), args.threads)
        ChatTemplate.from_dir(args.directory, Tokenizer.from_dir(args.directory))
        GenerationDefaults.from_dir(args.directory)
        unused = f", {len(report.unused)} unused" if report.unused else ""
        print(f"{args.directory}: {report.num_tensors} tensors are as they must be{unused}")
        print(f"fingerprint {checkpoint.fingerprint}")
    return 0


def _progress(verb: str) -> Callable[[int, int], None]:
    """Prints to a terminal, a few times a second and at the end; a short job prints nothing."""
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - last < _REPORT_INTERVAL_S and done < total):
            return
        last = now
        rate = done / max(now - start, 1e-9) / 1e9
        end = "\n" if done == total else ""
        print(
            f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB {verb}, {rate:.2f} GB/s", end=end, file=sys.stderr, flush=True
        )

    return report
