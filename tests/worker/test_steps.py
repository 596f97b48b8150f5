"""Scripts on real engines and groups through deaths and joins, without keepers: the test deals the views itself.

Each worker is a thread with a whole script; who dies is cut off from its peers at that instant. Whatever happens, the
survivors end with the bits of a job of one.
"""

import asyncio
import random
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from orch_core import plugins
from orch_core.contracts.document import Cause, View, ViewMember
from orch_core.contracts.errors import ConfigurationError, OrchError
from orch_core.contracts.ids import JobName, Step, ViewNumber, WorkerId
from orch_core.contracts.job import JobSpec
from orch_core.dataplane import GradientSync
from orch_core.dataplane.group import Blob, Group, Link
from orch_core.protocol.deal import Position
from orch_core.protocol.member import make_plan
from orch_core.worker import feeds
from orch_core.worker import run as runs
from orch_core.worker.alone import handover_alone
from orch_core.worker.following import Following
from orch_core.worker.handover import Handover, Offer
from orch_core.worker.peers import Listener, Peers
from orch_core.worker.setting import Setting

HANG_S = 120.0
SHARDS, EPOCHS, BATCH, SAMPLES = 5, 3, 10, 40
STEPS = EPOCHS * SAMPLES // BATCH


def data():
    g = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(SAMPLES, 3, generator=g), torch.randn(SAMPLES, 2, generator=g))


def initial(model):
    """Whatever other threads draw at the same time."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model


def script(run, happened=lambda what, run: None):
    """What every worker runs. `happened` is called where a test may do harm."""
    model = initial(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    history = []
    run.prepare(model, optimizer, scheduler)
    run.keep(history=history)
    for _ in run.epochs(EPOCHS):
        for batch in run.batches(data(), BATCH):
            for x, y in batch:
                happened("pass", run)
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.log(loss=loss)
            happened("outer", run)
            if run.step % 3 != 2:  # what is left in .grad in between is part of the state
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()
            history.append(batch.means["loss"])
    return history


class Worker(threading.Thread):
    def __init__(self, name, job, *, late=False):
        super().__init__(name=name, daemon=True)
        self.id = WorkerId(name)
        self.job = job
        self.handover = Handover(SHARDS, job.look.set)
        self.handover.hear(job_runs=late)
        self.run_ = runs.Run(Setting(job.spec, self.id), self.handover)
        if job.strategy is not None:
            job.use_strategy(self.run_)
        self.dead = False
        self.following = None
        self.address = job.door.open(self.handover.feeds) if job.door is not None else ""
        self.history = None
        self.error = None

    def run(self):
        try:
            self.history = self.job.script(self.run_, self.job.happened)
            self.run_.settle()
        except Exception as error:  # raised again by Job.finish()
            self.error = error
        self.job.look.set()


class Door:
    """Where the workers of this process are followed: a thread with the sockets of them all."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._peers = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(HANG_S)

    def open(self, served):
        async def start():
            def ignore(*_):
                pass

            peers = Peers("127.0.0.1", "token", Listener(ignore, ignore, ignore, ignore), served)
            peers.start()
            self._peers[peers.address] = peers
            return peers.address

        return self._do(start())

    def shut(self, address):
        if address in self._peers:
            self._do(self._peers.pop(address).close())

    def close(self):
        for address in list(self._peers):
            self.shut(address)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()


@pytest.fixture
def door():
    door = Door()
    yield door
    door.close()


class Job:
    """Deals views to threads as leader and keepers would."""

    def __init__(self, names, *, happened=lambda job, what, run: None, strategy=None, script=script, door=None):
        self.door = door
        self.spec = JobSpec(JobName("test"), seed=7, shards=SHARDS, workers=len(names), check_every=4)
        self.look = threading.Event()
        self.strategy = strategy
        self.script = script
        self._happened = happened
        self._lock = threading.RLock()
        self._dealt = threading.Condition(self._lock)
        self.number = 0
        self.workers = {}
        self.view = ()
        self.steps_of_views = []
        for name in names:
            self.add(name)

    def happened(self, what, run):
        self._happened(self, what, run)

    def use_strategy(self, run):
        make = run._make_engine

        def made():
            engine = make()
            engine.strategy = self.strategy
            return engine

        run.steps._make_engine = made

    def add(self, name, **options):
        with self._lock:
            self.workers[WorkerId(name)] = worker = Worker(name, self, **options)
            worker.start()

    def follow(self, name):
        """A joiner that is taken into a view once it is level."""
        with self._lock:
            if WorkerId(name) in self.workers:
                return
            self.add(name, late=True)
            joiner = self.workers[WorkerId(name)]
            joiner.following = Following(joiner.id, "token", self.to_follow, joiner.handover, self.look.set)
            joiner.following.start()

    def to_follow(self):
        with self._lock:
            return [ViewMember(w, self.workers[w].address) for w in self.view]

    def add_and_wait(self, name, **options):
        """From a worker's thread: it goes on when a view with the new one is dealt."""
        if WorkerId(name) not in self.workers:
            self.add(name, **options)
        with self._dealt:
            assert self._dealt.wait_for(lambda: WorkerId(name) in self.view, HANG_S), "nobody is taken in"

    def kill(self, name):
        """From any thread, at any instant of the victim."""
        with self._lock:
            victim = self.workers[WorkerId(name)]
            victim.dead = True
            victim.handover.close()
            victim.handover.end()
            if victim.following is not None:
                victim.following.stop()
        if self.door is not None:
            self.door.shut(victim.address)
        self.look.set()

    def alive(self):
        return [worker for worker in self.workers.values() if not worker.dead]

    def finish(self, but=None):
        """Deal views until everybody alive (but one) has done the last step; their words about the end."""
        while True:
            assert self.look.wait(HANG_S), "nothing happens any more"
            self.look.clear()
            with self._lock:
                alive = self.alive()
                for worker in alive:
                    if worker.error is not None:
                        for other in alive:
                            self.kill(other.id)
                        raise worker.error
                alive = [worker for worker in alive if worker.id != but]
                told = [worker.handover.read()[1] for worker in alive]
                done = [news.done for news in told]
                if all(d for w, d in zip(alive, done, strict=True) if w.following is None or w.handover.follows):
                    done = [d for d in done if d]  # who had no state when the others ended has none
                    break
                ready = [
                    w
                    for w, news in zip(alive, told, strict=True)
                    if news.announcement is not None and (w.following is None or w.handover.level)
                ]
                lost = [worker.handover.take_lost() for worker in alive]
                wanted = tuple(sorted((w.id for w in ready), key=lambda w: (w not in self.view, w)))
                first = not self.view and len(ready) < self.spec.workers
                if not first and (wanted != self.view or any(lost)):
                    self._deal(wanted)
        for worker in self.alive():
            worker.handover.end()
        for worker in self.workers.values():
            if worker.following is not None:
                worker.following.stop()
            worker.join(HANG_S)
        return done

    def _deal(self, members):
        self.number += 1
        fresh = self.number == 1
        view = View(
            ViewNumber(self.number),
            tuple(ViewMember(w, "") for w in members),
            Cause.START,
            "a test's",
            Step(0),
            0.0,
            fresh=fresh,
            origin=members if fresh else (),
        )
        followers = [w for w in members if self.workers[w].following is not None and w not in self.view]
        positions = {w: self.workers[w].handover.close() for w in members if w not in followers}
        furthest = max((p.applied for p in positions.values() if p.applied is not None), default=-1)
        for w in followers:  # as Member does: it freezes once it is near enough
            deadline = time.monotonic() + HANG_S
            while self.workers[w].handover.read()[0].applied < furthest - 1:
                assert time.monotonic() < deadline, f"{w} is not fed any more"
                time.sleep(0.001)
            positions[w] = self.workers[w].handover.close()
            self.workers[w].following.stop()
        sockets = {(a, b): socket.socketpair() for a in members for b in members if a != b}
        for me, worker in enumerate(members):
            plan = make_plan(view, worker, positions, SHARDS)
            links = {
                peer: Link(sockets[worker, other][0], sockets[other, worker][1])
                for peer, other in enumerate(members)
                if other != worker
            }
            self.workers[worker].handover.offer(Offer(plan, Group(me, links) if links else None))
        self.view = members
        self.steps_of_views.append(plan.step)
        self._dealt.notify_all()


def alone(strategy=None, script=script, happened=lambda what, run: None):
    run = runs.Run(
        Setting(JobSpec(JobName("test"), seed=7, shards=SHARDS)),
        handover_alone(Setting(JobSpec(JobName("t"), shards=SHARDS))),
    )
    if strategy is not None:
        Job.use_strategy(type("Fake", (), {"strategy": strategy})(), run)
    history = script(run, happened)
    return run.steps.finished(), history


@pytest.fixture(scope="module", autouse=True)
def strategy():
    """A process loads it in its one script thread; here several would at once."""
    plugins.installed().load("sync", JobSpec(JobName("test")).sync)


@pytest.fixture(scope="module")
def reference():
    return alone()


def same(done, reference):
    expected, _ = reference
    assert {one.weights_sha256 for one in done} == {expected.weights_sha256}
    assert {one.digest for one in done} == {expected.digest}
    assert {one.steps for one in done} == {STEPS}
    assert {one.bit_exact for one in done} == {True}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_any_number_of_workers_ends_with_the_bits_of_one(reference, count):
    job = Job([f"w{n}.1" for n in range(count)])
    same(job.finish(), reference)
    assert all(worker.history == reference[1] for worker in job.workers.values())


@pytest.mark.parametrize("what", ["pass", "outer"])
@pytest.mark.parametrize("victim", ["w0.1", "w1.1", "w2.1"])
def test_a_death_keeps_the_step(reference, what, victim):
    def happened(job, where, run):
        if where == what and run.step == 5 and run._setting.worker == victim and not job.workers[WorkerId(victim)].dead:
            job.kill(victim)

    job = Job(["w0.1", "w1.1", "w2.1"], happened=happened)
    done = job.finish()
    assert len(done) == 2
    same(done, reference)


def test_all_but_one_may_die(reference):
    deaths = {2: "w0.1", 5: "w3.1", 8: "w1.1"}

    def happened(job, where, run):
        victim = deaths.get(run.step)
        if where == "pass" and victim is not None and not job.workers[WorkerId(victim)].dead:
            job.kill(victim)

    job = Job([f"w{n}.1" for n in range(4)], happened=happened)
    done = job.finish()
    assert len(done) == 1
    same(done, reference)


def test_a_joiner_takes_the_state_and_carries_shards(reference):
    def happened(job, where, run):
        if where == "pass" and run.step == 4 and WorkerId("w1.1") not in job.workers:
            job.add("w1.1", late=True)

    job = Job(["w0.1"], happened=happened)
    done = job.finish()
    assert len(done) == 2
    same(done, reference)
    assert job.workers[WorkerId("w1.1")].history == reference[1]


def test_a_joiner_can_feed_after_the_donor_has_died(reference):
    def happened(job, where, run):
        if run.step == 4 and where == "pass" and WorkerId("w2.1") not in job.workers:
            job.add("w2.1", late=True)
        joined = WorkerId("w2.1") in job.view
        for victim in ("w0.1", "w1.1"):
            if joined and where == "pass" and run.step >= 6 and not job.workers[WorkerId(victim)].dead:
                job.kill(victim)
                break

    job = Job(["w0.1", "w1.1"], happened=happened)
    same(job.finish(), reference)


class TestFollowing:
    """A joiner is fed beside the view, and is taken in when it is level."""

    @staticmethod
    def joins(name, *, reluctant=False, kills=None, at=()):
        """`name` follows from step 2 on, has its state in step 6, and `kills` dies at `at`: a step and a place."""

        def happened(job, where, run):
            late, first = job.workers.get(WorkerId(name)), run._setting.worker == "w0.1"
            if where == "pass" and run.step == 2 and late is None:
                job.follow(name)
                if reluctant:
                    job.workers[WorkerId(name)].handover.__class__ = Reluctant
            if where == "pass" and run.step == 4 and first:
                wait_until(lambda: late.handover.follows or all(is_asked(w) for w in job.alive() if w is not late))
            if (run.step, where) == at and first and not job.workers[WorkerId(kills)].dead:
                job.kill(kills)
            if where == "outer" and run.step == 6 and first and not kills:
                wait_until(lambda: late.handover.follows)

        return happened

    def test_a_follower_is_taken_in_without_a_copy_of_the_state(self, reference, door):
        job = Job(["w0.1", "w1.1"], happened=self.joins("w2.1"), door=door)
        same(job.finish(), reference)
        joiner = job.workers[WorkerId("w2.1")]
        assert job.view == ("w0.1", "w1.1", "w2.1")
        assert joiner.history == reference[1]
        assert joiner.run_.steps._plan.without_state == ()

    def test_who_is_never_taken_in_has_the_same_bits_all_the_same(self, reference, door):
        """A hot spare."""
        job = Job(["w0.1", "w1.1"], happened=self.joins("w2.1", reluctant=True), door=door)
        same(job.finish(), reference)
        assert job.workers[WorkerId("w2.1")].history == reference[1]
        assert job.number == 1

    @pytest.mark.parametrize("at", [(4, "pass"), (4, "outer"), (5, "pass"), (5, "outer"), (8, "pass"), (8, "outer")])
    def test_it_goes_on_when_one_that_feeds_it_dies(self, reference, door, at):
        job = Job(["w0.1", "w1.1", "w2.1"], happened=self.joins("w3.1", kills="w1.1", at=at), door=door)
        same(job.finish(), reference)
        late = job.workers[WorkerId("w3.1")]
        assert late.history in (reference[1], [])  # it may have come too late to be fed again

    def test_who_follows_too_slowly_is_dropped_and_costs_the_members_nothing(
        self, reference, door, monkeypatch, caplog
    ):
        monkeypatch.setattr(feeds, "KEPT_RESULTS", 1)
        monkeypatch.setattr(feeds, "KEPT_LEAST", 1)
        monkeypatch.setattr(feeds._Feed, "_forget", lambda self, step: None)  # what it confirms is not heard
        late = WorkerId("w2.1")
        job = Job(["w0.1", "w1.1"], happened=self.joins(late, reluctant=True), door=door)
        same(job.finish(but=late), reference)
        assert f"event=follower-too-slow follower={late}" in caplog.text


class Reluctant(Handover):
    """Never level, so never taken in."""

    @property
    def level(self):
        return False


def is_asked(worker):
    """A follower's wish has reached it."""
    served = worker.handover.feeds
    return any(feed._waits or feed.active for feed in served._feeds.values())


def wait_until(truth):
    deadline = time.monotonic() + HANG_S
    while not truth():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(12))
def test_random_deaths_and_joins_change_no_bit(reference, seed):
    dice = random.Random(seed)
    lives = dict.fromkeys(range(3), 1)
    lock = threading.Lock()

    def happened(job, where, run):
        with lock:
            if dice.random() > 0.04 or not job.view:
                return
            members = [w for w in job.view if not job.workers[w].dead]
            if len(members) > 1:  # one that holds the state must live: who is surely through the first view
                victim = dice.choice(members[1:])
                job.kill(victim)
                place = int(victim[1])
                lives[place] += 1
                job.add(f"w{place}.{lives[place]}", late=True)

    job = Job(["w0.1", "w1.1", "w2.1"], happened=happened)
    done = job.finish()
    same(done, reference)
    assert job.number > 1


def test_states_that_differ_are_named(reference):
    def happened(job, where, run):
        if where == "outer" and run.step == 1 and run._setting.worker == "w1.1":
            with torch.no_grad():
                run.prepared.parameters[1][2] += 1.0

    job = Job(["w0.1", "w1.1", "w2.1"], happened=happened)
    with pytest.raises(OrchError, match=r"w0\.1, w2\.1 and w1\.1 differ in 0\.bias.*between step 0 and 4"):
        job.finish()


def test_loops_of_other_sizes_are_refused(monkeypatch):
    job = Job(["w0.1"])
    job.finish()
    steps = job.workers[WorkerId("w0.1")].run_.steps
    with pytest.raises(ConfigurationError, match="3 epochs of 40 samples"):
        steps.train(type(steps.training)(4, 40, 10))


class TestStrategyState:
    @pytest.fixture
    def topk(self, monkeypatch):
        monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "strategies"))
        from orch_sync_residual.strategy import TopK

        return TopK(0.3)

    def test_state_moves_with_its_shards_when_a_worker_joins(self, topk):
        def happened(job, where, run):
            if where == "pass" and run.step == 4 and WorkerId("w2.1") not in job.workers:
                job.add("w2.1", late=True)

        job = Job(["w0.1", "w1.1"], happened=happened, strategy=topk)
        done = job.finish()
        assert len(done) == 3
        same(done, alone(topk))

    def test_state_moves_with_its_shards_when_a_worker_is_slow(self, topk):
        def happened(job, where, run):
            if where == "pass" and run._setting.worker == "w1.1":
                time.sleep(0.02)

        job = Job(["w0.1", "w1.1"], happened=happened, strategy=topk)
        same(job.finish(), alone(topk))
        carried = [len(shards) for shards in job.workers[WorkerId("w0.1")].run_.steps._dealt(Step(STEPS))]
        assert carried == [4, 1]

    def test_a_follower_is_taken_in_with_the_state_of_its_shards(self, topk, door):
        job = Job(["w0.1", "w1.1"], happened=TestFollowing.joins("w2.1"), strategy=topk, door=door)
        same(job.finish(), alone(topk))
        assert WorkerId("w2.1") in job.view

    def test_a_death_loses_a_lossy_state_and_says_so(self, topk):
        def happened(job, where, run):
            if where == "pass" and run.step == 4 and not job.workers[WorkerId("w1.1")].dead:
                job.kill("w1.1")

        done = Job(["w0.1", "w1.1"], happened=happened, strategy=topk).finish()
        assert [one.bit_exact for one in done] == [False]


class Feedback(GradientSync):
    """Sends bfloat16 and keeps per shard what was not sent yet."""

    lossy = True

    async def reduce(self, bucket, comm):
        grad = bucket.grad + comm.state("residual", like=bucket.grad)
        sent = grad.to(torch.bfloat16).to(grad.dtype)
        comm.stage("residual", grad - sent)
        return await comm.mean(sent)


@pytest.mark.parametrize("step", [0, 1])
def test_a_joiner_in_the_outer_body_loses_no_strategy_state_not_even_in_the_first_step_that_has_any(step):
    everybody = threading.Barrier(2)

    def happened(job, where, run):
        if where == "outer" and run.step == step and run._setting.worker != "w2.1":
            if everybody.wait(HANG_S) == 0:
                job.add("w2.1", late=True)
            everybody.wait(HANG_S)
            job.add_and_wait("w2.1")

    job = Job(["w0.1", "w1.1"], happened=happened, strategy=Feedback())
    done = job.finish()
    assert len(done) == 3
    same(done, alone(Feedback()))


class DyingDonor:
    """A link that brings a whole state. Behind its last byte the donor is dead, and the keeper is the first to know."""

    peers = (0,)

    def __init__(self, halves, died):
        self._halves, self._died = list(halves), died

    def exchange_blobs(self, kind, step, sends, receives, limit=0):
        blob = self._halves.pop(0)
        if not self._halves:
            self._died()
        return {0: blob}

    def abort(self):
        pass

    def close(self):
        pass


def test_a_restart_does_not_begin_from_what_a_joiner_got_from_a_donor_that_died_behind_the_last_byte(reference):
    halves = []

    def donate(what, run):
        if what == "pass" and run.step == 4 and not halves:
            header, tensors = run.steps._outgoing_state(Step(4), run.steps.engine.results.encode())
            copies, half = [tensor.clone() for tensor in tensors], len(tensors) // 2
            halves.extend([Blob(header, copies[:half]), Blob(None, copies[half:])])

    def view(number, cause, *workers):
        members = tuple(ViewMember(worker, "") for worker in workers)
        fresh = cause is Cause.RESTART
        return View(ViewNumber(number), members, cause, "a test's", Step(0 if fresh else 4), 0.0, fresh=fresh)

    def restart():
        position = handover.close()
        assert position == Position()
        handover.offer(Offer(make_plan(view(3, Cause.RESTART, joiner), joiner, {joiner: position}, SHARDS)))

    alone(happened=donate)
    donor, joiner = WorkerId("w0.1"), WorkerId("w1.1")
    handover = Handover(SHARDS)
    handover.wake = lambda: handover.end() if handover.read()[1].done is not None else None
    handover.hear(job_runs=True)
    positions = {donor: Position(applied=Step(3)), joiner: Position()}
    plan = make_plan(view(2, Cause.JOIN, donor, joiner), joiner, positions, SHARDS)
    handover.offer(Offer(plan, DyingDonor(halves, restart)))
    run = runs.Run(Setting(JobSpec(JobName("test"), seed=7, shards=SHARDS), joiner), handover)
    assert script(run) == reference[1]
    same([run.steps.finished()], reference)


def counts_at_the_top(run, happened):
    """Changes what is kept between the yield and the inner loop."""
    model, seen = initial(nn.Linear(3, 2)), {"batches": 0}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.prepare(model, optimizer)
    run.keep(seen=seen)
    for _ in run.epochs(EPOCHS):
        for batch in run.batches(data(), BATCH):
            seen["batches"] += 1
            for x, y in batch:
                happened("pass", run)
                F.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen["batches"]


def decays_per_epoch(run, happened):
    """The learning rate changes at the end of an epoch, as in PyTorch's tutorials."""
    model = initial(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.prepare(model, optimizer)
    for _ in run.epochs(EPOCHS):
        for batch in run.batches(data(), BATCH):
            for x, y in batch:
                happened("pass", run)
                F.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] *= 0.5
    return optimizer.param_groups[0]["lr"]


def joins_from_inside_a_pass(*, script, late):
    """Somebody comes while the only member is in a pass of step 5, which is in epoch 1."""

    def happened(job, where, run):
        if where == "pass" and run.step == 5 and run._setting.worker == "w0.1":
            job.add_and_wait("w1.1", late=late)

    job = Job(["w0.1"], happened=happened, script=script)
    done = job.finish()
    expected = alone(script=script)
    assert len(done) == 2
    same(done, expected)
    assert {worker.history for worker in job.workers.values()} == {expected[1]}


def test_what_is_kept_travels_as_it_was_at_the_yield():
    joins_from_inside_a_pass(script=counts_at_the_top, late=True)


def test_a_slow_starter_that_joins_in_a_later_epoch_runs_no_end_of_the_epoch_it_began_in():
    joins_from_inside_a_pass(script=decays_per_epoch, late=False)


class Counting(nn.Module):
    """A layer whose state is not in tensors alone."""

    def __init__(self):
        super().__init__()
        self.linear, self.steps = nn.Linear(3, 2), 0

    def forward(self, x):
        return self.linear(x) * (1 + self.steps / 16)

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def with_everything(run, happened):
    model, best = initial(Counting()), {"loss": float("inf"), "step": -1}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    run.prepare(model, optimizer, scheduler, scaler)
    run.keep(best=best)
    for _ in run.epochs(EPOCHS):
        for batch in run.batches(data(), BATCH):
            for x, y in batch:
                happened("pass", run)
                loss = F.mse_loss(model(x), y)
                scaler.scale(loss).backward()
                run.log(loss=loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            model.steps += 1
            if batch.means["loss"] < best["loss"]:
                best.update(loss=batch.means["loss"], step=run.step)
    return scaler.get_scale(), scheduler.get_last_lr()[0], model.steps, best["step"]


def test_plain_python_and_two_members_agree_on_everything_that_can_be_prepared_and_kept():
    job = Job(["w0.1", "w1.1"], script=with_everything)
    done = job.finish()
    expected = alone(script=with_everything)
    same(done, expected)
    assert {worker.history for worker in job.workers.values()} == {expected[1]}
    assert expected[1][0] > 8
    assert expected[1][2] == STEPS


def test_a_joiner_gets_everything_that_can_be_prepared_and_kept():
    joins_from_inside_a_pass(script=with_everything, late=True)


def test_a_position_is_whole(reference):
    job = Job(["w0.1", "w1.1"])
    job.finish()
    for worker in job.workers.values():
        position = worker.handover.read()[0]
        assert position == Position(applied=Step(STEPS - 1), shard_state=position.shard_state)
