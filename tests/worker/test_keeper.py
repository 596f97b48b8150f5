"""Keepers beside a real leader: views open, links break, members leave. The scripts are as small as can be."""

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from orch_core.contracts.document import Cause, Finished, Training, View, ViewMember
from orch_core.contracts.ids import JobName, Step, ViewNumber, WorkerId
from orch_core.contracts.job import JobSpec
from orch_core.dataplane.group import Blob
from orch_core.dataplane.tcp import Kind
from orch_core.protocol.member import EVICTED
from orch_core.testing.control import ControlPlane, until
from orch_core.worker.handover import Announcement, Handover, Offer
from orch_core.worker.keeper import FORSAKEN_S, Keeper, RecoveryClock, steps_per_s
from orch_core.worker.setting import Setting

HANG_S = 60.0


class Member:
    """A worker whose script does nothing but hold State(0)."""

    def __init__(self, plane, worker, *, fingerprint="same", model=()):
        setting = Setting(plane.job.spec, WorkerId(worker), coordinators=tuple(plane.addresses), token=plane.token)
        self.worker = worker
        self.left = []
        self.handover = Handover(plane.job.spec.shards)
        self.keeper = Keeper(setting, self.handover, lambda code, reason: self.left.append((code, reason)))
        self.offers = []
        self.ended = threading.Event()
        self.announcement = Announcement(fingerprint, model, None)
        self._script = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.keeper.start()
        self._script.start()
        self.handover.tell_now(announcement=self.announcement)

    def _run(self):
        with contextlib.suppress(Exception):
            while True:
                offer = self.handover.next_word(newer=True)
                self.handover.hold_state(Step(offer.plan.step), ())
                self.offers.append(offer)
                self.handover.tell_now(holds=offer.plan.view.number)
        self.ended.set()

    @property
    def offer(self) -> Offer | None:
        return self.offers[-1] if self.offers else None

    def members(self):
        return () if self.offer is None else self.offer.plan.view.workers

    def stop(self):
        self.keeper.close()
        self.handover.end()
        self.handover.close()
        for offer in self.offers:
            if offer.group is not None:
                offer.group.close()
        self._script.join(HANG_S)


@contextlib.asynccontextmanager
async def job(*members, min_workers=1, **options):
    async with ControlPlane(1, workers=len(members), min_workers=min_workers) as plane:
        await plane.elect("c0")
        made = [Member(plane, worker, **options.get(worker, {})) for worker in members]
        for member in made:
            member.start()
        try:
            yield plane, made
        finally:
            for member in made:
                await asyncio.to_thread(member.stop)


def test_three_workers_open_the_first_view_and_their_links_carry_blobs():
    async def scenario():
        async with job("w0.1", "w1.1", "w2.1") as (_, members):
            await until(lambda: all(len(m.members()) == 3 for m in members), HANG_S)

            def talk(member):
                group = member.offer.group
                sends = {peer: Blob(f"from {group.me} to {peer}") for peer in group.peers}
                got = group.exchange_blobs(Kind.STATE, 0, sends, group.peers)
                return {peer: blob.header for peer, blob in got.items()}

            told = await asyncio.gather(*(asyncio.to_thread(talk, member) for member in members))
            for me, got in enumerate(told):
                assert got == {peer: f"from {peer} to {me}" for peer in range(3) if peer != me}

    asyncio.run(scenario())


def test_a_follower_whom_nobody_feeds_any_more_gives_way_once_a_view_is_formed_without_those():
    setting = Setting(JobSpec(JobName("job")), WorkerId("w2.1"))
    late = Keeper(setting, Handover(2), lambda code, reason: None)
    fed = SimpleNamespace(fed_by=frozenset({WorkerId("w1.1")}))

    def forsaken(formed, number, *members, lost_s=0.0):
        people = tuple(ViewMember(WorkerId(w), "") for w in members)
        late._formed = ViewNumber(formed)
        late._view = View(ViewNumber(number), people, Cause.DEATH, "", Step(5), 0.0)
        return late._is_forsaken(fed, time.monotonic() - lost_s)

    assert forsaken(2, 2, "w0.1")
    assert not forsaken(1, 2, "w0.1")  # w1.1 may have had the last state, and this one would be the next best
    assert not forsaken(1, 1, "w0.1", "w1.1")
    assert forsaken(1, 2, "w0.1", lost_s=FORSAKEN_S + 1)


def test_a_member_that_falls_away_is_out_of_a_later_view_and_the_others_go_on():
    async def scenario():
        async with job("w0.1", "w1.1", "w2.1") as (_, members):
            await until(lambda: all(len(m.members()) == 3 for m in members), HANG_S)
            await asyncio.to_thread(members[1].stop)
            rest = [members[0], members[2]]
            await until(lambda: all(m.members() == ("w0.1", "w2.1") for m in rest), HANG_S)
            assert all(m.offer.plan.step == 0 for m in rest)

    asyncio.run(scenario())


def test_who_was_asked_to_leave_ends_with_0_when_the_others_hold_the_state():
    async def scenario():
        async with job("w0.1", "w1.1") as (_, members):
            await until(lambda: all(len(m.members()) == 2 for m in members), HANG_S)
            members[0].keeper._loop.call_soon_threadsafe(members[0].keeper._leave)
            await until(lambda: bool(members[0].left), HANG_S)
            assert members[0].left[0][0] == 0
            await until(lambda: members[1].members() == ("w1.1",), HANG_S)

    asyncio.run(scenario())


def test_members_whose_kernels_or_models_differ_are_refused_with_both_named():
    async def scenario(options, words):
        async with job("w0.1", "w1.1", **options) as (_, members):
            await until(lambda: any(m.left for m in members), HANG_S)
            code, reason = next(m.left[0] for m in members if m.left)
            assert code == 2
            assert all(word in reason for word in ("w0.1", "w1.1", *words))

    kernels = {"w0.1": {"fingerprint": "AVX2"}, "w1.1": {"fingerprint": "AVX512"}}
    models = {"w0.1": {"model": ("weight float32 (2, 3)",)}, "w1.1": {"model": ("weight float32 (2, 4)",)}}
    asyncio.run(scenario(kernels, ("AVX2", "AVX512")))
    asyncio.run(scenario(models, ("(2, 3)", "(2, 4)")))


def test_a_worker_that_comes_when_the_job_runs_hears_so_and_is_taken_in():
    async def scenario():
        async with job("w0.1", "w1.1", min_workers=2) as (plane, members):  # w0.1 alone does not go on: no one follows
            await until(lambda: all(len(m.members()) == 2 for m in members), HANG_S)
            await asyncio.to_thread(members[1].stop)
            late = Member(plane, "w1.2")
            late.keeper.start()
            assert await asyncio.to_thread(late.handover.job_runs)
            late._script.start()
            late.handover.tell_now(announcement=late.announcement)
            try:
                await until(lambda: late.members() == members[0].members() == ("w0.1", "w1.2"), HANG_S)
                assert late.offer.plan.without_state == ("w1.2",)
                assert late.offer.plan.donor == "w0.1"
            finally:
                await asyncio.to_thread(late.stop)

    asyncio.run(scenario())


def test_a_worker_that_comes_after_the_end_makes_room_as_one_that_was_left_out():
    async def scenario():
        async with job("w0.1") as (plane, (member,)):
            await until(lambda: bool(member.members()), HANG_S)
            member.handover.tell_now(done=Finished(0, "digest", "weights", {}, Training(1, 8, 8)))
            assert await asyncio.to_thread(member.ended.wait, HANG_S)  # the end is committed
            late = Member(plane, "w1.1")
            late.keeper.start()
            try:
                await until(lambda: bool(late.left), HANG_S)
                assert late.left[0] == (EVICTED, "the job has ended without this worker")
                assert member.left == []
            finally:
                late.keeper.close()
                late.handover.end()

    asyncio.run(scenario())


class TestRecoveryClock:
    @pytest.fixture
    def view(self):
        async def first():
            async with job("w0.1") as (_, members):
                await until(lambda: bool(members[0].members()), HANG_S)
                return members[0].offer.plan.view

        return asyncio.run(first())

    def test_a_failure_is_cut_into_its_four_parts(self, view):
        clock = RecoveryClock()
        clock.seen(view, 0.0, (), known=None)
        died = replace(view, number=view.number + 1, cause=Cause.DEATH)
        clock.broke(10.0, 9.9, (9.0, 9.5))
        clock.seen(died, 10.1, (9.0, 9.5), known=view)
        clock.formed(died.number, 10.3)
        assert clock.measured((9.0, 9.5)) is None
        got = clock.measured((9.0, 9.5, 10.6, 10.7))
        assert (got.detect_ms, got.agree_ms, got.reform_ms, got.redo_ms, got.total_ms) == (100, 100, 200, 300, 1100)
        assert clock.measured((9.0, 9.5, 10.6, 10.7, 10.8)) is None

    def test_a_join_is_no_failure_although_links_end(self, view):
        clock = RecoveryClock()
        clock.broke(10.0, 9.9, (9.5,))
        clock.seen(replace(view, number=view.number + 1, cause=Cause.JOIN), 10.1, (9.5,), known=view)
        assert clock.measured((9.5, 11.0)) is None

    def test_two_failures_in_a_row_count_as_one(self, view):
        clock = RecoveryClock()
        clock.broke(10.0, None, (9.5,))
        clock.seen(replace(view, number=view.number + 1, cause=Cause.DEATH), 10.1, (9.5,), known=view)
        clock.broke(10.2, None, (9.5,))
        clock.seen(replace(view, number=view.number + 2, cause=Cause.DEATH), 10.3, (9.5,), known=view)
        got = clock.measured((9.5, 10.5))
        assert (got.view, got.total_ms) == (view.number + 2, 1000)


def test_speed_is_steps_over_time():
    assert steps_per_s(()) == steps_per_s((1.0,)) == 0.0
    assert steps_per_s((1.0, 1.5, 2.0)) == 2.0
