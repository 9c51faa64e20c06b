from expertfleet.cluster.commands.progress import Progress
from expertfleet.proto.generated import membership_pb2 as pb


def worker(state: str, loaded: int = 0, total: int = 0, error: str = "") -> pb.FleetStatus:
    report = pb.WorkerReport(bytes_loaded=loaded, bytes_total=total, error=error, numerics="class-a")
    seat = pb.WorkerStatus(role="expert", seat="expert-0", state=state, report=report, num_experts=12)
    return pb.FleetStatus(workers=[pb.WorkerStatus(role="controller", seat="controller", state="ready"), seat])


def test_each_state_is_said_once_and_loading_once_a_second() -> None:
    lines: list[str] = []
    now = [0.0]
    progress = Progress(lines.append, lambda: now[0])
    steps = [
        (0.0, worker("vacant")),
        (0.1, worker("starting")),
        (1.0, worker("loading", 0, 4_000_000_000)),
        (1.5, worker("loading", 500_000_000, 4_000_000_000)),
        (2.0, worker("loading", 1_000_000_000, 4_000_000_000)),
        (5.0, worker("ready", 4_000_000_000, 4_000_000_000)),
        (6.0, worker("ready", 4_000_000_000, 4_000_000_000)),
    ]
    for moment, status in steps:
        now[0] = moment
        progress.update(status)
    assert lines == [
        "expert-0 starting",
        "expert-0 loading 0 % of 4.00 GB",
        "expert-0 loading 25 % of 4.00 GB, 1.00 GB/s",
        "expert-0 ready: 12 experts, 4.00 GB, 1.00 GB/s, numerics class-a",
    ]


def test_each_way_of_computing_experts_is_said_once() -> None:
    lines: list[str] = []
    progress = Progress(lines.append)
    for backend in ("cpu-native bfloat16", "reference bfloat16; it was not built"):
        for seat in ("expert-0", "expert-1"):
            report = pb.WorkerReport(backend=backend)
            states = [
                pb.WorkerStatus(role="expert", seat=seat, state=state, report=report) for state in ("loading", "ready")
            ]
            for state in states:
                progress.update(pb.FleetStatus(workers=[state]))
    told = [line for line in lines if line.startswith("experts: ")]
    assert told == ["experts: cpu-native bfloat16", "experts: reference bfloat16; it was not built"]


def test_what_an_attention_worker_computes_with_is_not_told_as_experts() -> None:
    lines: list[str] = []
    report = pb.WorkerReport(backend="cpu torch")
    Progress(lines.append).update(
        pb.FleetStatus(workers=[pb.WorkerStatus(role="attention", seat="attention-0", state="ready", report=report)])
    )
    assert not [line for line in lines if line.startswith("experts: ")]


def test_a_failure_comes_with_its_reason() -> None:
    lines: list[str] = []
    Progress(lines.append).update(worker("failed", error="no space"))
    assert lines == ["expert-0 failed: no space"]


def test_a_long_silence_is_broken_by_what_is_missing() -> None:
    lines: list[str] = []
    now = [0.0]
    progress = Progress(lines.append, lambda: now[0])
    for moment in (0.0, 5.0, 9.0, 12.0, 15.0, 23.0):
        now[0] = moment
        progress.update(pb.FleetStatus(missing="no attention worker is ready"))
    assert lines == ["waiting: no attention worker is ready"] * 2
