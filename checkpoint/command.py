"""``expertfleet checkpoint make-tiny``, ``check`` and ``pull``.

Knows nothing of serving. A fault is one line on standard error and exit status 1; progress goes to standard error.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .check import CheckReport, check
from .files import CheckpointFiles
from .make_tiny import make_tiny
from .pull.pull import pull
from .tiny_config import SHAPES, TinyShape, option_name

_REPORT_INTERVAL_S = 0.5
_CHECK_THREADS = 4
TOKEN_VARIABLE = "EXPERTFLEET_PULL_TOKEN"

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


def fill_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the verbs; the chosen one's ``run`` is in ``args.run``."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    tiny = verbs.add_parser("make-tiny", help="write a random checkpoint in the published format")
    tiny.add_argument("directory", type=Path, metavar="DIR")
    tiny.add_argument("--seed", type=int, default=0, help="same seed and options, same bytes (default: 0)")
    tiny.add_argument("--like", choices=sorted(SHAPES), help="start from this model's dimensions")
    for field in dataclasses.fields(TinyShape):
        text = f"{_HELP[field.name]} (default: {field.default}, or what --like says)"
        tiny.add_argument(option_name(field.name), type=int, metavar="N", help=text)
    tiny.set_defaults(run=run)
    checker = verbs.add_parser("check", help="check all of a checkpoint that serving needs")
    checker.add_argument("directory", type=Path, metavar="DIR")
    checker.add_argument(
        "--threads", type=int, default=_CHECK_THREADS, help=f"reading threads (default: {_CHECK_THREADS})"
    )
    checker.set_defaults(run=run)
    _add_pull(verbs.add_parser("pull", help="copy a checkpoint from an HTTP address, resuming and checking"))


def _add_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help=f"the files' folder; {TOKEN_VARIABLE} holds a bearer token for it")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=8, help="files at once (default: 8)")
    parser.add_argument(
        "--sha256sums", metavar="FILE_OR_URL", help="what the files must be (default: SHA256SUMS beside them, if any)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        return {"make-tiny": _make_tiny, "check": _check, "pull": _pull}[args.verb](args)
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
    report, fingerprint = _checked(args.directory, args.threads)
    unused = f", {len(report.unused)} unused" if report.unused else ""
    print(f"{args.directory}: {report.num_tensors} tensors are as they must be{unused}")
    print(f"fingerprint {fingerprint}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be 1 or more")
    # Files that secrets are mounted from often end in a line break.
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    pulled = pull(args.url, args.directory, jobs=args.jobs, say=_say, token=token, sha256sums=args.sha256sums)
    _, fingerprint = _checked(args.directory, _CHECK_THREADS)
    print(
        f"{args.directory}: {pulled.num_files} files of {pulled.num_bytes / 1e9:.2f} GB are as they must be, "
        f"{pulled.bytes_received / 1e9:.2f} GB came now, fingerprint {fingerprint}"
    )
    return 0


def _checked(directory: Path, threads: int) -> tuple[CheckReport, str]:
    with CheckpointFiles.open(directory) as checkpoint:
        report = check(checkpoint, _progress("checked"), threads)
        return report, checkpoint.fingerprint


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
