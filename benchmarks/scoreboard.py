"""What the scoreboards of the expert kernels share: random experts, the routes of a load, the error, and a CSV line.

One rule for all: bytes are the checkpoint's own (24,772,608 per K2 expert) of the experts hit, once per call, whatever a
kernel holds; TFLOPS count six products per route and weight, without padding; the error is ‖found − wanted‖ / ‖wanted‖ of
some routes against float64 from the checkpoint's numbers. Experts are drawn by a Zipf-like law (--skew), shuffled; a subset
of 24, 48 or 96 experts gets its share of tokens × top-8 routes, as a shard does.
"""

import argparse
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from expertfleet.kernels import int4
from expertfleet.kernels.expert_layer import ExpertShape, Projection

COLUMNS = (
    "device,kernel,threads,hidden,width,experts_held,experts_all,top_k,tokens,routes,experts_hit,median_us,p90_us"
    ",gb_per_s,limit_gb_per_s,percent_of_limit,tflops,padding_rows,relative_error"
)
CHECKED_ROUTES = 4

ExpertWeights = tuple[Projection, Projection, Projection]


@dataclass(frozen=True)
class Load:
    """Routes of ``tokens`` tokens that fall to the experts held."""

    tokens: int
    rows: torch.Tensor  # [N] int64
    experts: torch.Tensor  # [N] int64, positions among the experts held

    @property
    def hit(self) -> int:
        return len(set(self.experts.tolist()))


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--hidden", type=int, default=7168)
    made.add_argument("--width", type=int, default=2048)
    made.add_argument("--top-k", type=int, default=8)
    made.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    made.add_argument("--skew", type=float, default=0.4, help="exponent of the experts' popularity, 0: uniform")
    made.add_argument(
        "--distinct", type=int, default=8, help="different random experts; the others have copies of them"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--results", type=Path, metavar="FOLDER", help="where a CSV and a plot are written as well")
    return made


def random_experts(shape: ExpertShape, held: int, distinct: int, device: str = "cpu") -> list[ExpertWeights]:
    def projection(num_out: int, num_in: int) -> Projection:
        scales = torch.rand(num_out, num_in // shape.group_size, device=device).mul_(0.01).add_(0.001).bfloat16()
        return torch.randint(-(2**31), 2**31, (num_out, num_in // 8), device=device).int(), scales

    up, down = (shape.width, shape.hidden), (shape.hidden, shape.width)
    made = [(projection(*up), projection(*up), projection(*down)) for _ in range(min(held, distinct))]
    return [made[position % len(made)] for position in range(held)]


def draw_load(tokens: int, held: int, options: argparse.Namespace, draw: int = 0) -> Load:
    """The same routes for every kernel; ``draw`` numbers different ones. A shard's experts are a random part of all."""
    generator = torch.Generator().manual_seed((options.seed * 1000 + tokens) * 1000 + draw)
    total = max(options.all_experts, held)
    popularity = torch.arange(1, total + 1).double().pow(-options.skew)[torch.randperm(total, generator=generator)]
    chosen = torch.multinomial(popularity.expand(tokens, -1), options.top_k, generator=generator)  # [T, K]
    rows = torch.arange(tokens)[:, None].expand_as(chosen)
    mine = chosen < held
    if not mine.any():
        chosen, mine = chosen % held, torch.ones_like(mine)
    return Load(tokens, rows[mine], chosen[mine])


def exact(x: torch.Tensor, load: Load, experts: Sequence[ExpertWeights]) -> torch.Tensor:
    """The result of every route [N, H] in float64, on exactly dequantised weights."""
    results = []
    for row, expert in zip(load.rows.tolist(), load.experts.tolist(), strict=True):
        gate, up, down = (int4.dequantize(*projection, torch.float64) for projection in experts[expert])
        inputs = x[row].double()
        results.append(down @ (torch.nn.functional.silu(gate @ inputs) * (up @ inputs)))
    return torch.stack(results)


def relative_error(found: torch.Tensor, x: torch.Tensor, load: Load, experts: Sequence[ExpertWeights]) -> float:
    """Of some routes' ``found`` [N, H] for x [tokens, H]."""
    some = Load(load.tokens, load.rows[:CHECKED_ROUTES], load.experts[:CHECKED_ROUTES])
    wanted = exact(x, some, experts)
    return float((found[: len(wanted)].double() - wanted).norm() / wanted.norm())


def spread(times: Sequence[float]) -> tuple[float, float]:
    """Median and p90."""
    ordered = sorted(times)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


def line(
    device: str,
    kernel: str,
    threads: int,
    shape: ExpertShape,
    held: int,
    load: Load,
    own_bytes: Sequence[float],
    times: Sequence[float],
    limit: float,
    padding: str,
    error: float,
    options: argparse.Namespace,
) -> str:
    """``times`` in seconds and ``own_bytes`` of every call, ``limit`` in GB/s; GB/s are the median of the calls' own."""
    median, p90 = spread(times)
    routes = len(load.rows)
    speed = statistics.median(num / seconds for num, seconds in zip(own_bytes, times, strict=True)) / 1e9
    flops = 6 * routes * shape.hidden * shape.width / median / 1e12
    counts = f"{held},{options.all_experts},{options.top_k},{load.tokens},{routes},{load.hit}"
    told = f"{median * 1e6:.1f},{p90 * 1e6:.1f},{speed:.1f},{limit:.1f},{100 * speed / limit:.1f},{flops:.4f}"
    return f"{device},{kernel},{threads},{shape.hidden},{shape.width},{counts},{told},{padding},{error:.2e}"


class Table:
    """Lines go to stdout; with a folder also to ``experts-DEVICE.csv`` in it, and ``save`` draws them beside it."""

    def __init__(self, device: str, folder: Path | None, remark: str) -> None:
        self._lines = [f"# {remark}, {_commit()}, {time.strftime('%Y-%m-%d')}", COLUMNS]
        self._file = folder and folder / f"experts-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.csv"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        print("\n".join(self._lines), flush=True)

    def add(self, told: str) -> None:
        self._lines.append(told)
        print(told, flush=True)
        if self._file:
            self._file.write_text("\n".join(self._lines) + "\n", encoding="utf-8")

    def save(self) -> None:
        if self._file:
            _draw([dict(zip(COLUMNS.split(","), told.split(","), strict=True)) for told in self._lines[2:]], self._file)


def _draw(rows: list[dict[str, str]], file: Path) -> None:
    """One panel for every number of experts held: the share of the bandwidth limit by tokens."""
    import matplotlib.pyplot as plt  # NOTE: slow to import, and only wanted here

    held = list(dict.fromkeys(row["experts_held"] for row in rows))
    figure, panels = plt.subplots(1, len(held), figsize=(5 * len(held), 4), squeeze=False, sharey=True)
    for panel, number in zip(panels[0], held, strict=True):
        mine = [row for row in rows if row["experts_held"] == number]
        for kernel in dict.fromkeys(row["kernel"] for row in mine):
            points = [(int(row["tokens"]), float(row["percent_of_limit"])) for row in mine if row["kernel"] == kernel]
            panel.plot(*zip(*points, strict=True), marker="o", label=kernel)
        panel.set(xscale="log", yscale="log", xlabel="tokens", title=f"{number} experts of {mine[0]['experts_all']}")
        panel.grid(visible=True, which="both", alpha=0.3)
    panels[0][0].set_ylabel("checkpoint's bytes per second, % of the read limit")
    panels[0][-1].legend()
    figure.suptitle(rows[0]["device"])
    figure.tight_layout()
    figure.savefig(file.with_suffix(".svg"))
    plt.close(figure)


def _commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return f"commit {told.stdout.strip() or 'unknown'}"


def bytes_of(expert: ExpertWeights) -> int:
    return sum(part.nbytes for projection in expert for part in projection)
