import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest

from expertfleet.cluster.controller import controller as controller_module
from expertfleet.cluster.controller.budget import Budget
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.controller.seats import FleetShape
from expertfleet.cluster.controller.stragglers import SlowRule
from expertfleet.membership.channel import open_channel
from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet
from expertfleet.membership.lease_client import LeaseClient
from expertfleet.membership.watch import EpochWatch
from expertfleet.proto.errors import Code, FleetError, from_call
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.proto.generated import membership_pb2_grpc as rpc
from expertfleet.router.placement.expert_loads import Load

SHAPE = FleetShape(4, 10, 1, "a" * 64, "bfloat16")
WANTED = DesiredState.first(attention_workers=1, expert_shards=3, replicas=1)


class Worker:
    """Sits on one seat, holds what it is told to (if it ``loads``), and reports whatever ``state`` says."""

    def __init__(self, controller: str, seat: str, pid: int = 1, capacity: int = 0, offer: str = "") -> None:
        self.keeper = LeaseClient(controller, seat)
        self.seat, self.pid, self.state, self.capacity, self.offer = seat, pid, "loading", capacity, offer
        self.held = ExpertSet.empty()
        self.newest = EpochId(0, 0)
        self.told = ExpertSet.empty()
        self.loads, self.left = True, False
        self.times: dict[str, float] = {}
        self.load = b""
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> "Worker":
        self.server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        await self.keeper.register(
            self.address,
            self.pid,
            f"node-{self.pid}",
            SHAPE.fingerprint,
            SHAPE.dtype,
            capacity=self.capacity,
            offer=self.offer,
        )
        self.tasks = [
            asyncio.create_task(self.keeper.keep(self.report, interval_s=0.05)),
            asyncio.create_task(self.keeper.follow(self.on_order)),
        ]
        if self.seat.startswith("attention"):
            watch = EpochWatch(self.keeper.controller, self.seat)
            self.tasks.append(asyncio.create_task(watch.run(self.on_epoch)))
        return self

    def on_order(self, order: pb.Order) -> None:
        self.left = self.left or order.leave
        if order.HasField("hold"):
            self.told = ExpertSet.from_proto(order.hold)
            self.held = self.told if self.loads else self.held

    def on_epoch(self, epoch: Epoch) -> None:
        self.newest = epoch.id

    def report(self) -> pb.WorkerReport:
        held = self.held.to_proto() if self.seat.startswith("expert") else None
        return pb.WorkerReport(
            seat=self.seat,
            state=self.state,
            held=held,
            numerics="x",
            pid=self.pid,
            epoch=self.newest.to_proto(),
            seconds_per_expert=self.times,
            load=self.load,
        )

    async def die(self) -> None:
        self.server.close()
        await self.fall_silent()

    async def fall_silent(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.keeper.close()


class Fleet:
    """A controller with a worker on every seat and one watcher."""

    def __init__(
        self,
        wanted: DesiredState = WANTED,
        lease_s: float = 0.6,
        capacity: int = 0,
        state_file: Path | None = None,
        seats_are_offered: bool = False,
        slow: SlowRule | None = None,
        **others: Any,
    ) -> None:
        self.wanted, self.lease_s, self.capacity = wanted, lease_s, capacity
        settings = {"state_file": state_file, "seats_are_offered": seats_are_offered, "slow": slow, **others}
        self.controller = Controller(SHAPE, wanted, lease_s=lease_s, **settings)
        self.workers: dict[str, Worker] = {}
        self.epochs: list[Epoch] = []

    async def __aenter__(self) -> Self:
        await self.controller.start()
        self.watch = asyncio.create_task(EpochWatch(self.controller.address, "test").run(self.epochs.append))
        for seat in (*self.wanted.seats("attention"), *self.wanted.seats("expert")):
            await self.join(seat)
        return self

    async def join(self, seat: str, state: str = "loading", **settings: Any) -> Worker:
        settings = {"pid": len(self.workers) + 1, "capacity": self.capacity, **settings}
        worker = self.workers[seat] = Worker(self.controller.address, seat, **settings)
        worker.state = state
        return await worker.start()

    async def scale(self, **wish: Any) -> pb.ScaleReply:
        async with open_channel(self.controller.address) as channel:
            reply: pb.ScaleReply = await rpc.MembershipStub(channel).Scale(pb.ScaleRequest(**wish))
            return reply

    def num_asked(self, layer: int, expert: int) -> int:
        """Shards that the newest epoch asks for it."""
        return sum(member.held.holds(layer, expert) for member in self.epochs[-1].experts)

    def held(self) -> dict[str, int]:
        return {seat: worker.held.count for seat, worker in self.workers.items() if seat.startswith("expert")}

    async def __aexit__(self, *_: object) -> None:
        self.watch.cancel()
        for worker in self.workers.values():
            await worker.die()
        await asyncio.gather(self.watch, return_exceptions=True)
        await self.controller.stop()

    def all_ready(self) -> None:
        for worker in self.workers.values():
            worker.state = "ready"

    async def until(self, condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_complete(self) -> Epoch:
        await self.until(lambda: bool(self.epochs) and self.epochs[-1].complete)
        return self.epochs[-1]

    async def status(self) -> pb.FleetStatus:
        async with open_channel(self.controller.address) as channel:
            reply: pb.FleetStatus = await rpc.MembershipStub(channel).Status(pb.StatusRequest())
            return reply


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_burst_of_ready_workers_makes_one_complete_epoch() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            assert not fleet.epochs
            fleet.all_ready()
            epoch = await fleet.until_complete()
            assert [member.seat for member in epoch.experts] == ["expert-0", "expert-1", "expert-2"]
            assert [member.seat for member in epoch.attention] == ["attention-0"]
            assert sum(member.held.count for member in epoch.experts) == 30
            assert (epoch.fingerprint, epoch.dtype) == (SHAPE.fingerprint, SHAPE.dtype)
            await asyncio.sleep(0.3)
            assert len(fleet.epochs) <= 2
            assert fleet.epochs[-1] == epoch

    in_loop(scenario)


def test_a_silent_shard_leaves_the_epoch_and_comes_back_in_a_newer_one() -> None:
    async def scenario() -> None:
        async with Fleet(capacity=10) as fleet:  # nobody has room for more
            fleet.all_ready()
            whole = await fleet.until_complete()
            await fleet.workers["expert-1"].die()
            await fleet.until(lambda: not fleet.epochs[-1].complete)
            broken = fleet.epochs[-1]
            assert broken.id > whole.id
            assert [member.seat for member in broken.experts] == ["expert-0", "expert-2"]
            status = await fleet.status()
            assert {w.seat: w.state for w in status.workers}["expert-1"] == "lost"
            assert not status.ready
            assert status.missing == "10 of 30 experts have no live replica (expert-1 lost)"
            await fleet.join("expert-1", "ready", pid=20)
            again = await fleet.until_complete()
            assert again.id > broken.id
            assert again.experts[1].address == fleet.workers["expert-1"].address

    in_loop(scenario)


def test_a_draining_worker_leaves_the_epoch_at_once() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=30.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            fleet.workers["attention-0"].state = "draining"
            await fleet.until(lambda: fleet.epochs[-1].attention == (), timeout_s=2.0)
            assert not fleet.epochs[-1].complete

    in_loop(scenario)


def test_a_restarted_controller_waits_for_its_workers_before_it_speaks() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=6.0) as fleet:
            fleet.all_ready()
            before = await fleet.until_complete()
            held = {name: worker.held for name, worker in fleet.workers.items()}
            port = int(fleet.controller.address.rpartition(":")[2])
            await fleet.controller.stop()
            fleet.controller = Controller(SHAPE, WANTED, port=port, lease_s=6.0)
            seen = len(fleet.epochs)
            await fleet.controller.start()
            await fleet.until(lambda: len(fleet.epochs) > seen)
            after = fleet.epochs[seen]
            assert after.complete
            assert after.id.incarnation > before.id.incarnation
            assert {member.seat: member.held for member in after.experts} == {
                name: held[name] for name in held if name.startswith("expert")
            }

    in_loop(scenario)


def test_a_foreign_checkpoint_is_refused_over_the_wire() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            keeper = LeaseClient(fleet.controller.address, "expert-0")
            with pytest.raises(FleetError, match="has opened checkpoint bbbb") as caught:
                await keeper.register("h:9", 9, "n", "b" * 64, SHAPE.dtype)
            assert caught.value.code is Code.FOREIGN_CHECKPOINT
            with pytest.raises(FleetError, match="computes in float32") as caught:
                await keeper.register("h:9", 9, "n", SHAPE.fingerprint, "float32")
            assert caught.value.code is Code.WRONG_DTYPE
            await keeper.close()

    in_loop(scenario)


def test_a_malformed_report_is_refused_over_the_wire() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            lease = fleet.workers["expert-0"].keeper.lease_id
            report = pb.WorkerReport(
                seat="expert-0", state="ready", held=pb.ExpertSet(num_layers=4, num_experts=10, bits=b"x")
            )
            async with open_channel(fleet.controller.address) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match=r"ExpertSet\.bits: 1 bytes"):
                    await rpc.MembershipStub(channel).Report(pb.ReportRequest(lease_id=lease, report=report))

    in_loop(scenario)


def test_status_lists_every_seat_the_controller_and_gateways() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            await fleet.join("gateway-0")
            fleet.all_ready()
            await fleet.until_complete()
            status = await fleet.status()
            assert [(w.role, w.seat) for w in status.workers] == [
                ("controller", "controller"),
                ("attention", "attention-0"),
                ("expert", "expert-0"),
                ("expert", "expert-1"),
                ("expert", "expert-2"),
                ("gateway", "gateway-0"),
            ]
            assert status.ready
            assert status.missing == ""
            assert [w.num_experts for w in status.workers] == [0, 0, 10, 10, 10, 0]
            assert [w.wanted for w in status.workers] == [False, True, True, True, True, False]
            assert status.coverage == pytest.approx(2 / 3)

    in_loop(scenario)


def test_a_node_asks_for_its_own_worker_alone() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            async with open_channel(fleet.controller.address) as channel:
                stub = rpc.MembershipStub(channel)
                one = await stub.Status(pb.StatusRequest(seat="expert-1"))
                nobody = await stub.Status(pb.StatusRequest(seat="expert-7"))
            assert [worker.seat for worker in one.workers] == ["expert-1"]
            assert one.workers[0].pid == fleet.workers["expert-1"].pid
            assert not nobody.workers

    in_loop(scenario)


def test_a_wish_that_cannot_be_kept_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "state").mkdir()
        async with Fleet(state_file=tmp_path / "state" / "fleet.json") as fleet:
            for path in (tmp_path / "state").iterdir():
                path.unlink()
            (tmp_path / "state").rmdir()
            with pytest.raises(grpc.aio.AioRpcError, match=r"fleet\.json cannot be written"):
                await fleet.scale(attention_workers=2)
            assert fleet.controller.desired == WANTED

    in_loop(scenario)


def test_copies_follow_what_is_asked_while_the_fleet_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each minute, here ten times a second; the hottest expert's load drifts to another one."""
    monkeypatch.setattr(controller_module, "_REBALANCE_S", 0.1)

    async def scenario() -> None:
        async with Fleet(DesiredState.first(1, 3, 1.25)) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            for hot in (3, 8):
                rates = np.ones((4, 10), dtype=np.float32)
                rates[2, hot] = 500.0
                fleet.workers["attention-0"].load = Load(rates, rates).to_bytes()
                await fleet.until(lambda hot=hot: fleet.num_asked(2, hot) > 1, 15.0)
            status = await fleet.status()
            moved = status.workers[0].report.metrics["moved_experts_total"]
            assert moved > 37, "what was dealt first, and what followed the load"

    in_loop(scenario)


def test_a_taken_port_is_one_clear_error() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            port = int(fleet.controller.address.rpartition(":")[2])
            with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be bound"):
                await Controller(SHAPE, WANTED, port=port).start()

    in_loop(scenario)


def test_the_experts_of_a_lost_shard_go_to_those_that_have_room() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            before = {seat: worker.held.mask for seat, worker in fleet.workers.items() if seat.startswith("expert")}
            await fleet.workers["expert-1"].die()
            await fleet.until(lambda: fleet.epochs[-1].complete and fleet.epochs[-1].id > whole.id)
            assert [member.seat for member in fleet.epochs[-1].experts] == ["expert-0", "expert-2"]
            for seat in ("expert-0", "expert-2"):
                assert fleet.workers[seat].held.count == 15
                assert (fleet.workers[seat].held.mask >= before[seat]).all()

    in_loop(scenario)


def test_a_process_that_is_gone_is_missed_at_once_and_a_stalled_one_is_not() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=30.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            await fleet.workers["expert-1"].fall_silent()
            await fleet.workers["expert-2"].die()
            await fleet.until(lambda: "expert-2" not in {member.seat for member in fleet.epochs[-1].experts}, 4.0)
            assert "expert-1" in {member.seat for member in fleet.epochs[-1].experts}

    in_loop(scenario)


def test_a_process_that_listens_a_moment_longer_than_its_streams_live_is_missed_as_well() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=30.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            ending = fleet.workers["expert-2"]
            await ending.fall_silent()
            await asyncio.sleep(0.05)  # by then somebody has connected
            ending.server.close()
            await fleet.until(lambda: "expert-2" not in {member.seat for member in fleet.epochs[-1].experts}, 4.0)

    in_loop(scenario)


def test_a_seat_that_is_taken_anew_while_the_old_process_is_looked_for_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect = asyncio.open_connection

    async def scenario() -> None:
        async with Fleet(lease_s=30.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            old = fleet.workers["expert-2"].address
            looking, looked = asyncio.Event(), asyncio.Event()

            async def slowly(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                try:
                    return await connect(host, port)
                except ConnectionRefusedError:
                    if old == f"{host}:{port}" and not looking.is_set():
                        looking.set()
                        await fleet.join("expert-2", "ready", pid=20)
                        looked.set()
                    raise

            monkeypatch.setattr(asyncio, "open_connection", slowly)
            await fleet.workers["expert-2"].die()
            await asyncio.wait_for(looked.wait(), 4.0)
            await asyncio.sleep(0.2)
            status = {worker.seat: worker for worker in (await fleet.status()).workers}
            assert (status["expert-2"].state, status["expert-2"].pid) == ("ready", 20)
            assert caplog.text.count("is lost") == 1, "the old one, and not its successor"

    in_loop(scenario)


def test_a_new_shard_is_asked_only_when_it_holds_its_share_and_the_old_ones_give_it_up_afterwards() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            reply = await fleet.scale(expert_shards=4)
            assert list(reply.expert_seats) == ["expert-0", "expert-1", "expert-2", "expert-3"]
            joined = await fleet.join("expert-3", "loading")
            joined.loads = False
            await asyncio.sleep(0.5)
            assert len(fleet.epochs[-1].experts) == 3
            assert sum(fleet.held().values()) == 30
            joined.loads, joined.held, joined.state = True, joined.told, "ready"
            await fleet.until(lambda: fleet.held()["expert-3"] > 0 and sum(fleet.held().values()) == 30)
            await fleet.until(lambda: len(fleet.epochs[-1].experts) == 4)
            assert all(epoch.complete for epoch in fleet.epochs if len(epoch.experts) >= 3)
            assert max(fleet.held().values()) <= 8

    in_loop(scenario)


def test_a_fleet_that_shrinks_moves_experts_first_and_then_lets_shards_go() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            await fleet.scale(expert_shards=2)
            leaver = fleet.workers["expert-2"]
            await fleet.until(lambda: leaver.left)
            assert [member.seat for member in fleet.epochs[-1].experts] == ["expert-0", "expert-1"]
            assert leaver.held.count == 0
            assert all(epoch.complete for epoch in fleet.epochs if epoch.id >= whole.id)
            await leaver.die()
            await fleet.until(lambda: "expert-2" not in fleet.controller._book.seats)
            assert (await fleet.status()).settled

    in_loop(scenario)


def test_a_shard_that_wants_to_leave_is_relieved_and_its_seat_waits_for_the_next() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            fleet.workers["expert-0"].state = "leaving"
            await fleet.until(lambda: fleet.workers["expert-0"].left)
            assert all(epoch.complete for epoch in fleet.epochs if epoch.id >= whole.id)
            await fleet.workers["expert-0"].die()
            await fleet.until(lambda: fleet.controller._book.seats["expert-0"].state == "lost")
            assert not (await fleet.status()).settled

    in_loop(scenario)


def test_without_room_elsewhere_a_leaving_shard_serves_on() -> None:
    async def scenario() -> None:
        async with Fleet(capacity=10) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            fleet.workers["expert-0"].state = "leaving"
            await asyncio.sleep(1.0)
            assert not fleet.workers["expert-0"].left
            assert fleet.epochs[-1].complete
            assert "expert-0" in {member.seat for member in fleet.epochs[-1].experts}

    in_loop(scenario)


async def slow_down(fleet: Fleet, seat: str) -> None:
    """The attention worker says so of one shard, once everything is at rest."""
    fleet.all_ready()
    await fleet.until_complete()
    await fleet.until(lambda: fleet.controller._fleet.settled())
    shards = {name: worker.address for name, worker in fleet.workers.items() if name.startswith("expert")}
    fleet.workers["attention-0"].times = {
        address: 0.031 if name == seat else 0.01 for name, address in shards.items()
    }  # fmt: skip


def test_a_shard_that_stays_slow_is_drained_and_the_others_hold_everything() -> None:
    async def scenario() -> None:
        async with Fleet(slow=SlowRule(after_s=0.6, factor=3.0)) as fleet:
            await slow_down(fleet, "expert-1")
            await asyncio.sleep(0.3)
            assert fleet.controller._book.wanted == WANTED
            await fleet.until(lambda: fleet.controller._book.wanted == DesiredState((0,), (0, 2), 1.0))
            await fleet.until(lambda: fleet.workers["expert-1"].left)
            await fleet.until(lambda: fleet.held()["expert-0"] + fleet.held()["expert-2"] == 30)
            assert all(epoch.complete for epoch in fleet.epochs[-2:])

    in_loop(scenario)


def test_a_slow_shard_that_the_fleet_cannot_do_without_stays(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with Fleet(capacity=12, slow=SlowRule(after_s=0.4, factor=3.0)) as fleet:
            await slow_down(fleet, "expert-1")
            await asyncio.sleep(2.0)
            assert fleet.controller._book.wanted == WANTED
            assert not fleet.workers["expert-1"].left

    in_loop(scenario)
    (said,) = [record.getMessage() for record in caplog.records if "slower" in record.getMessage()]
    assert (
        "expert-1 has been slower than its peers for 0.4 s and stays: drain expert-1: 2 expert shards have room" in said
    )


def test_by_default_a_slow_shard_is_left_alone() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            await slow_down(fleet, "expert-1")
            await asyncio.sleep(1.0)
            assert fleet.controller._book.wanted == WANTED

    in_loop(scenario)


def test_a_drained_attention_worker_leaves_the_epoch_before_it_is_told_to_go() -> None:
    async def scenario() -> None:
        wanted = DesiredState.first(attention_workers=2, expert_shards=3, replicas=1)
        async with Fleet(wanted) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            await fleet.scale(drain="attention-0")
            await fleet.until(lambda: fleet.workers["attention-0"].left)
            assert [member.seat for member in fleet.epochs[-1].attention] == ["attention-1"]
            assert not fleet.workers["attention-1"].left

    in_loop(scenario)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"expert_shards": 2}, "expert_shards: 2 expert shards have room for 24 of 30 experts; at least 3 are needed"),
        ({"expert_shards": 0}, "expert_shards: 0 is not within 1 to 4096"),
        ({"attention_workers": 5000}, "attention_workers: 5000 is not within 1 to 4096"),
        ({"replicas": 4.0}, "replicas: 3 expert shards cannot hold 4 copies of each expert, .* at least 4 are needed"),
        ({"replicas": 0.5}, "replicas: 0.5 is not within 1 to 4096"),
        ({"drain": "expert-1"}, "drain expert-1: 2 expert shards have room for 24 of 30"),
        ({"drain": "attention-0"}, "drain: attention-0 is the last of its kind"),
        ({"drain": "expert-7"}, "drain: 'expert-7' is no seat of this fleet"),
        ({"without": ["expert-2"]}, "without expert-2: 2 expert shards have room for 24 of 30 experts; at least 3 are"),
        ({"without": ["expert-2", "expert-7"]}, "without: 'expert-7' is no seat of this fleet"),
        ({"without": ["x" * 12000]}, "without: 'x{78}… is no seat of this fleet"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(wish: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with Fleet(capacity=12) as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            with pytest.raises(grpc.aio.AioRpcError, match=message):
                await fleet.scale(**wish)
            await asyncio.sleep(0.3)
            assert fleet.epochs[-1] == whole
            assert fleet.controller._book.wanted == WANTED

    in_loop(scenario)


@pytest.mark.parametrize(
    "drain",
    ["x" * 9_000, "x" * 12_000, "x" * 17_000, "\n" * 4_000, "é" * 3_000, "專" * 5_000, "%" * 6_000, "😀" * 100_000],
    ids=lambda drain: f"{len(drain)}x{ord(drain[0]):x}",
)
def test_a_refusal_keeps_its_code_however_long_the_refused_value_is(drain: str) -> None:
    async def scenario() -> None:
        async with Fleet(capacity=12) as fleet, open_channel(fleet.controller.address) as channel:
            stub = rpc.MembershipStub(channel)
            for _ in range(200):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Scale(pb.ScaleRequest(drain=drain))
                error = from_call(caught.value)
                assert error.code is Code.BAD_REQUEST
                assert str(error).startswith(f"drain: {repr(drain)[:20]}")
                assert str(error).endswith("is no seat of this fleet, or leaves already")

    in_loop(scenario)


def test_a_refusal_of_many_seats_names_a_few_of_them() -> None:
    async def scenario() -> None:
        wanted = DesiredState.first(1, 40, 1.0)
        controller = Controller(SHAPE, wanted)
        asked = pb.ScaleRequest(without=[f"expert-{number}" for number in range(39)])
        assert controller._granting._without(asked.without)[1] == f"without {', '.join(asked.without[:8])} and 31 more"
        assert controller._granting._without(asked.without[:8])[1] == f"without {', '.join(asked.without[:8])}"

    in_loop(scenario)


def test_what_is_wanted_outlives_the_controller(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=6.0, state_file=tmp_path / "state.json") as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            await fleet.scale(expert_shards=4, replicas=2)
            await fleet.join("expert-3", "ready")
            await fleet.until(lambda: sum(fleet.held().values()) == 60 and fleet.held()["expert-3"] == 15)
            held = {seat: fleet.workers[seat].held for seat in fleet.held()}
            port = int(fleet.controller.address.rpartition(":")[2])
            await fleet.controller.stop()
            fleet.controller = Controller(SHAPE, WANTED, port=port, lease_s=6.0, state_file=tmp_path / "state.json")
            await fleet.controller.start()
            seen = len(fleet.epochs)
            await fleet.until(lambda: len(fleet.epochs) > seen)
            assert fleet.controller._book.wanted == DesiredState((0,), (0, 1, 2, 3), 2.0)
            await asyncio.sleep(1.0)
            assert {seat: fleet.workers[seat].held for seat in held} == held
            assert fleet.epochs[-1].complete

    in_loop(scenario)


def test_a_state_file_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(ValueError, match=r"state\.json: is not the state of a fleet"):
        Controller(SHAPE, WANTED, state_file=tmp_path / "state.json")


def test_nodes_decide_which_seats_there_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        nobody, state_file = DesiredState((), (), 1), tmp_path / "state.json"
        async with Fleet(nobody, lease_s=6.0, state_file=state_file, seats_are_offered=True) as fleet:
            keeper = LeaseClient(fleet.controller.address, "expert-5")
            with pytest.raises(FleetError, match="does not exist in a fleet of 0 attention workers and 0 expert"):
                await keeper.register("127.0.0.1:1", 1, "node", SHAPE.fingerprint, SHAPE.dtype)
            await keeper.close()
            await fleet.controller.offer({"expert-5": "a", "attention-0": "b"})
            await fleet.join("expert-5", "ready")
            await fleet.join("attention-0", "ready")
            await fleet.until_complete()
            assert fleet.held() == {"expert-5": 30}
            await fleet.controller.offer({"expert-9": "c"})
            await fleet.join("expert-9", "ready")
            await fleet.until(lambda: fleet.held() == {"expert-5": 15, "expert-9": 15})
            with pytest.raises(
                grpc.aio.AioRpcError, match="expert_shards: this fleet's seats are those that its nodes"
            ):
                await fleet.scale(expert_shards=1)
            assert (await fleet.scale(without=["expert-9"])).expert_seats == ["expert-5"]
            assert fleet.controller.desired == DesiredState((0,), (5, 9), 1), "a question changes nothing"
            await fleet.scale(drain="expert-5")
            await fleet.until(lambda: fleet.workers["expert-5"].left)
            assert fleet.held()["expert-9"] == 30
            assert DesiredState.load(state_file) == DesiredState((0,), (9,), 1)

    in_loop(scenario)


async def claim(fleet: Fleet, seat: str, address: str = "127.0.0.1:1", **settings: Any) -> FleetError | None:
    """Another process asks for the seat; its refusal."""
    keeper = LeaseClient(fleet.controller.address, seat)
    try:
        await keeper.register(address, 99, "elsewhere", SHAPE.fingerprint, SHAPE.dtype, **settings)
    except FleetError as refusal:
        return refusal
    finally:
        await keeper.close()
    return None


def test_a_second_process_at_a_served_seat_is_refused_and_the_first_serves_on() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            for seat in ("expert-1", "attention-0"):
                refusal = await claim(fleet, seat)
                assert refusal is not None
                assert refusal.code is Code.BAD_REQUEST
                worker = fleet.workers[seat]
                told = f"seat: {seat} is held by pid {worker.pid} on node-{worker.pid} at {worker.address}, for "
                assert str(refusal).startswith(told)
            await asyncio.sleep(0.3)
            assert fleet.epochs[-1] == whole

    in_loop(scenario)


def test_a_restarted_process_gets_its_seat_though_the_old_lease_lives() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=60.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            old = fleet.workers["expert-1"]
            lease_id = old.keeper.lease_id
            old.server.close()  # as after kill -9, before anybody has noticed
            for task in old.tasks:
                task.cancel()
            assert await claim(fleet, "expert-1") is None
            seat = fleet.controller._book.seats["expert-1"]
            assert (seat.pid, seat.lease_id > lease_id) == (99, True)

    in_loop(scenario)


def test_while_nobody_knows_whether_the_holder_is_there_its_seat_is_kept_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its machine was cut off: nothing refuses a connection, and it does not report."""

    async def silence(address: str) -> bool:
        return False

    monkeypatch.setattr(controller_module, "is_nobody_at", silence)

    async def scenario() -> None:
        async with Fleet(lease_s=4.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            await fleet.workers["expert-1"].fall_silent()
            refusal = await claim(fleet, "expert-1", deadline_s=0.1)
            assert refusal is not None
            assert refusal.code is Code.NOT_READY
            assert "who says nothing; ask again" in str(refusal)
            assert await claim(fleet, "expert-1", deadline_s=20.0) is None, "it waits until the lease is over"
            fleet.workers["expert-1"].server.close()

    in_loop(scenario)


def test_who_was_cut_off_finds_its_seat_taken_when_it_is_back() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            old = fleet.workers["expert-1"]
            await old.fall_silent()
            await fleet.until(lambda: fleet.controller._book.seats["expert-1"].state == "lost")
            await fleet.join("expert-1", "ready", pid=20)
            with pytest.raises(FleetError, match=r"seat: expert-1 is held by pid 20 on node-20"):
                await old.keeper.keep(old.report, interval_s=0.05)
            await old.keeper.close()
            old.server.close()
            assert fleet.controller._book.seats["expert-1"].pid == 20

    in_loop(scenario)


def test_two_processes_that_ask_at_once_get_one_seat_between_them() -> None:
    async def scenario() -> None:
        async with Fleet(DesiredState.first(1, 4, 1)) as fleet:
            await fleet.workers["expert-3"].die()
            await fleet.until(lambda: fleet.controller._book.seats["expert-3"].state == "lost")
            asking = [Worker(fleet.controller.address, "expert-3", pid) for pid in (30, 31)]
            answers = await asyncio.gather(*(worker.start() for worker in asking), return_exceptions=True)
            (refusal,) = [answer for answer in answers if isinstance(answer, FleetError)]
            assert refusal.code is Code.BAD_REQUEST
            (winner,) = [answer for answer in answers if isinstance(answer, Worker)]
            assert f"held by pid {winner.pid} on" in str(refusal)
            for worker in asking:
                await worker.die()

    in_loop(scenario)


def test_a_node_drains_its_own_worker_and_nobody_elses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Fleet(DesiredState((), (), 1), seats_are_offered=True) as fleet:
            await fleet.controller.offer({"attention-0": "a", "expert-0": "b", "expert-1": "c"})
            for seat in ("attention-0", "expert-0", "expert-1"):
                await fleet.join(seat, "ready", offer=f"of {seat}")
            await fleet.until_complete()
            await fleet.controller.offer({"expert-2": "d"})
            before = fleet.controller.desired
            for seat, offer, whose in (
                ("expert-1", "another", f"held by pid {fleet.workers['expert-1'].pid} on"),
                ("expert-1", "c", "held by pid"),  # it was to have the seat, and another process was there first
                ("expert-2", "another", "another node's"),  # nobody has come yet
            ):
                with pytest.raises(grpc.aio.AioRpcError, match=f"drain: {seat} is {whose}"):
                    await fleet.scale(drain=seat, drain_offer=offer)
            assert fleet.controller.desired == before
            await fleet.scale(drain="expert-2", drain_offer="d")
            await fleet.scale(drain="expert-1", drain_offer="of expert-1")
            await fleet.until(lambda: fleet.workers["expert-1"].left)
            assert fleet.controller.desired == DesiredState((0,), (0,), 1)

    in_loop(scenario)


def test_who_would_join_is_told_what_the_fleet_serves_and_who_sits_where() -> None:
    async def scenario() -> None:
        async with Fleet(versions={"ray": "2.60.0"}) as fleet:
            await fleet.workers["expert-2"].die()
            async with open_channel(fleet.controller.address) as channel:
                stub = rpc.MembershipStub(channel)
                held = await stub.Status(pb.StatusRequest(seat="expert-1"))
                await fleet.until(lambda: fleet.controller._book.seats["expert-2"].state == "lost")
                free = await stub.Status(pb.StatusRequest(seat="expert-2"))
            assert (held.fingerprint, held.dtype, dict(held.versions)) == (
                SHAPE.fingerprint,
                SHAPE.dtype,
                {"ray": "2.60.0"},
            )
            assert held.workers[0].lease_id == fleet.workers["expert-1"].keeper.lease_id
            assert held.workers[0].held_s >= held.workers[0].silent_s >= 0
            assert (free.workers[0].lease_id, free.workers[0].held_s) == (0, 0)

    in_loop(scenario)


MACHINE = Budget(1 << 30, 30, 1 << 28, memory_gib=8.0, available_bytes=13 << 30)  # room for all experts in each shard


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {"expert_shards": 30},
            r"expert_shards: expert_shards 30 would take \d+\.\d GiB .* at most expert_shards \d would fit",
        ),
        ({"expert_shards": 1000}, r"at most expert_shards \d would fit"),
        ({"attention_workers": 500}, r"at most attention_workers \d would fit"),
        ({"replicas": 3.0}, r"replicas: replicas 3 would take .* at most replicas 1\.\d+ would fit"),
    ],
)
def test_a_machine_is_not_asked_for_memory_that_it_has_not_got(
    wish: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expertfleet.cluster.controller.wishes.available_memory", lambda: 1 << 40)

    async def scenario() -> None:
        async with Fleet(budget=MACHINE) as fleet:
            with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                await fleet.scale(**wish)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert fleet.controller.desired == WANTED

    in_loop(scenario)


@pytest.mark.parametrize("capacity", [12, 15])
def test_copies_that_no_shard_has_room_for_are_refused_with_the_number_that_fits(capacity: int) -> None:
    async def scenario() -> None:
        async with Fleet(capacity=capacity) as fleet:
            fits = capacity * 3 * 100 // 30 / 100
            with pytest.raises(
                grpc.aio.AioRpcError, match=f"replicas: 3 expert shards have room for .* at most {fits:g} copies"
            ):
                await fleet.scale(replicas=2.0)
            assert (await fleet.scale(replicas=fits)).replicas == fits

    in_loop(scenario)


def test_a_shard_leaves_though_there_is_no_room_for_all_copies_without_it() -> None:
    async def scenario() -> None:
        async with Fleet(DesiredState.first(1, 3, 1.5), capacity=16) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            await fleet.scale(drain="expert-2")
            await fleet.until(lambda: fleet.workers["expert-2"].left)
            assert fleet.epochs[-1].complete

    in_loop(scenario)
