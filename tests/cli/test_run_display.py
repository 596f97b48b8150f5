import os
import pty
import threading
import time
from dataclasses import replace

import pytest

from orch_core.agent.audience import Snapshot
from orch_core.cli import display
from orch_core.cli.display import Display, Story, failure_text, summary_text
from orch_core.contracts.document import (
    Cause,
    Document,
    Event,
    Failure,
    Finished,
    Recovery,
    Training,
    View,
    ViewMember,
)
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Progress, WorkerProgress
from orch_core.protocol.children import Process
from orch_core.protocol.outcome import summarize

SPEC = JobSpec(name="job", workers=2)
VIEW = View(1, (ViewMember("w0.1", ""), ViewMember("w1.1", "")), Cause.START, "all are ready", 0, 0.5)
RECOVERY = Recovery(2, 7, Cause.DEATH, 12.0, 3.0, 10.0, 20.0, 45.2)
DOCUMENT = Document(
    job=SPEC,
    started_at=1.0,
    status=JobStatus.RUNNING,
    views=(VIEW,),
    recoveries=(RECOVERY,),
    events=(Event(1.0, "view", "view 1: w0.1, w1.1 (all are\x1b[2J ready)"), Event(1.1, "formed", "view 1 is formed")),
    events_total=2,
)
PROGRESS = Progress(step=12, means={"loss": 0.34567, "odd": None}, samples_per_s=1234.5, training=Training(2, 240, 24))


def snapshot(**more):
    values = {
        "spec": SPEC,
        "started_at": 1.0,
        "document": DOCUMENT,
        "progress": PROGRESS,
        "term": 1,
        "leader": "c1",
        "processes": (Process("w0.1", 10, 0.0), Process("w1.1", 11, 0.0)),
        "stopping": False,
    }
    return Snapshot(**{**values, **more})


class Streams:
    """Two pipes in place of stdout and stderr, and all that has come out of them."""

    def __init__(self, encoding="utf-8"):
        self.text = {"out": b"", "own": b""}
        self.threads = []
        self.files = {}
        for name in self.text:
            read, write = os.pipe()
            self.files[name] = os.fdopen(write, "w", encoding=encoding)
            self.threads.append(threading.Thread(target=self._read, args=(name, read)))
            self.threads[-1].start()

    def _read(self, name, read):
        while data := os.read(read, 65536):
            self.text[name] += data
        os.close(read)

    def end(self):
        for file in self.files.values():
            file.close()
        for thread in self.threads:
            thread.join()
        return self.text["out"].decode(), self.text["own"].decode()


@pytest.fixture
def streams():
    one = Streams()
    yield one
    one.end()


def test_workers_lines_go_to_stdout_with_their_place_and_orchs_own_to_stderr(streams, tmp_path):
    shown = Display(tmp_path, streams.files["out"], streams.files["own"])
    shown.start()
    shown.output("w0.1", "one\ntwo\n")
    shown.output("w1.3", "größe ✓\n")
    shown.say("a sentence")
    shown.show(snapshot())
    shown.close("LAST WORDS\n")
    out, own = streams.end()
    assert out == "w0 | one\nw0 | two\nw1.3 | größe ✓\n"
    assert "orch: a sentence\n" in own
    assert "orch: view 1: w0.1, w1.1 (all are ready)\n" in own
    assert "orch: recovered in 45 ms at step 7, view 2 (detect 12, agree 3, reform 10, redo 20 ms)\n" in own
    assert own.endswith("LAST WORDS\n")
    assert "\x1b" not in own
    assert "\r" not in own


def test_an_ascii_terminal_gets_escapes_and_no_exception(tmp_path):
    streams = Streams("ascii")
    shown = Display(tmp_path, streams.files["out"], streams.files["own"])
    shown.start()
    shown.output("w0.1", "größe ✓\n")
    shown.close()
    assert streams.end()[0] == "w0 | gr\\xf6\\xdfe \\u2713\n"


def test_a_flood_that_fits_is_shown_whole(streams, tmp_path):
    shown = Display(tmp_path, streams.files["out"], streams.files["own"])
    shown.start()
    for _ in range(200):
        shown.output("w0.1", "a line of forty characters, more or less\n" * 1000)
    shown.output("w0.1", "AFTER THE FLOOD\n")
    shown.close()
    out, own = streams.end()
    assert out.count("\n") == 200_001
    assert out.endswith("AFTER THE FLOOD\n")
    assert own == ""


def test_a_blocked_terminal_blocks_nobody_and_what_is_left_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "OUTPUT_LIMIT", 100_000)
    monkeypatch.setattr(display, "BLOCKED_S", 0.2)
    read, write = os.pipe()
    streams = Streams()
    with os.fdopen(write, "w") as file:
        shown = Display(tmp_path, file, streams.files["own"])
        shown.start()
        began = time.monotonic()
        for number in range(2000):
            shown.output("w0.1", f"{number} " + "x" * 1000 + "\n")
            shown.show(snapshot())
        shown.close("LAST WORDS\n")
        assert time.monotonic() - began < 10
        threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(read, 65536), b"")], daemon=True).start()
        shown._thread.join(10)
        assert not shown._thread.is_alive()
    own = streams.end()[1]
    assert "lines of w0.1 are left out here; all are in" in own
    assert str(tmp_path / "logs" / "w0.1.out") in own


def test_a_reader_that_goes_away_is_no_error(streams, tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as file:
        shown = Display(tmp_path, file, streams.files["own"])
        shown.start()
        shown.output("w0.1", "x\n")
        shown.close("LAST WORDS\n")
    assert streams.end()[1] == "LAST WORDS\n"


def test_a_terminal_has_one_live_line_that_makes_way(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file:
        shown = Display(tmp_path, file, file)
        shown.start()
        shown.show(snapshot())
        seen = b""
        while b"step 12/20" not in seen:
            seen += os.read(master, 65536)
        shown.output("w0.1", "a line\n")
        while b"w0 | a line" not in seen:
            seen += os.read(master, 65536)
        shown.close("LAST WORDS\n")
        while b"LAST WORDS" not in seen:
            seen += os.read(master, 65536)
    os.close(master)
    assert b"\r\x1b[2Kw0 | a line\r\n" in seen
    assert b"\r\x1b[2KLAST WORDS" in seen
    live = [part.split(b"\x1b[0m")[0] for part in seen.split(b"\x1b[2m")[1:]]
    assert all(len(line) < 20 for line in live)


def test_the_line_says_what_it_waits_for_and_how_long():
    story = Story()
    workers = (
        WorkerProgress("w0.1", 10, "h", "member", (0, 1), 12),
        WorkerProgress("w1.1", 11, "h", "starting", (), None, "building the model\n"),
    )
    shown = snapshot(progress=Progress(step=12, workers=workers))
    story.line(shown, 100.0)
    assert story.line(shown, 112.0) == (
        "step 12  no step for 12 s  2 workers  view 1  leader c1  w1: building the model, 12 s"
    )


def test_where_the_line_is_too_narrow_the_metrics_go_last():
    whole = "step 12/20  loss 0.3457  odd not finite  1,234 samples/s  2 workers  view 1  leader c1"
    lines = [Story().line(snapshot(), 0.0, width) for width in range(len(whole), 0, -1)]
    assert lines[0] == whole
    assert "leader" not in lines[1] and "view 1" in lines[1]
    shorter = {
        "step 12/20  loss 0.3457  odd not finite  1,234 samples/s  2 workers",
        "step 12/20  loss 0.3457  odd not finite  1,234 samples/s",
        "step 12/20  loss 0.3457  odd not finite",
        "step 12/20  loss 0.3457",
        "step 12/20",
    }
    assert shorter <= set(lines)
    assert all(len(line) <= width for line, width in zip(lines, range(len(whole), 0, -1), strict=True))


def test_before_the_first_view_the_line_says_that_torch_is_imported():
    begun = snapshot(document=None, progress=None, processes=(), importing=True)
    assert Story().line(begun, 0.0) == "workers wait for the import of torch  leader c1"
    assert "import" not in Story().line(snapshot(importing=True), 0.0)


def test_a_job_that_stands_still_has_no_speed_and_says_who_hangs_where():
    story = Story()
    hangs = WorkerProgress("w0.1", 10, "h", "member", (0, 1), 12, "in shard 0 of step 12")
    shown = snapshot(progress=Progress(step=12, samples_per_s=2000.0, workers=(hangs,)))
    assert "2,000 samples/s" in story.line(shown, 100.0)
    still = story.line(shown, 110.0)
    assert "samples/s" not in still
    assert "no step for 10 s" in still
    assert "w0: in shard 0 of step 12, 10 s" in still
    shown = snapshot(progress=Progress(step=13, samples_per_s=2000.0, workers=(replace(hangs, doing=""),)))
    assert "2,000 samples/s" in story.line(shown, 111.0)


def test_the_line_says_when_nobody_leads_and_who_is_frozen():
    frozen = (Process("w0.1", 10, 0.0, stopped=True),)
    line = Story().line(snapshot(leader=None, processes=frozen, stopping=True), 0.0)
    assert "no leader" in line
    assert "w0: frozen" in line
    assert line.startswith("ending")


def test_each_event_is_told_once():
    story = Story()
    assert len(story.tell(snapshot())) == 2
    assert story.tell(snapshot()) == []


def test_the_failure_ends_with_facts_and_the_log(tmp_path):
    (tmp_path / "w1.1.out").write_text("x")
    failure = Failure(
        "w1.1",
        "script",
        "ValueError: primary cause",
        "Traceback ...\n  File x\nValueError: primary cause\n",
        4,
        2,
        (5, 6),
    )
    text = failure_text(failure, tmp_path / "w1.1.out")
    assert text.splitlines()[-2:] == [
        "orch: w1.1, step 4, shard 2, samples 5, 6: ValueError: primary cause",
        f"orch: the output of w1.1 is in {tmp_path / 'w1.1.out'}",
    ]
    assert "Traceback ...\n  File x\n" in text


def test_a_configuration_error_is_a_sentence_without_a_traceback(tmp_path):
    failure = Failure("w1.1", "configuration", "12 samples over 5 shards", "Traceback ...", exit_code=2)
    assert failure_text(failure, tmp_path / "none") == "orch: w1.1: 12 samples over 5 shards\n"


@pytest.mark.parametrize("width", [20, 40, 110])
def test_the_summary_fits_any_width_and_is_ascii(tmp_path, width):
    finished = Finished(20, "d", "a" * 64, {"loss": 0.5, "bad": None}, Training(2, 239, 24))
    document = Document(job=SPEC, started_at=1.0, views=(VIEW,), recoveries=(RECOVERY,), finished=finished)
    summary = summarize(SPEC, document, PROGRESS, JobStatus.FINISHED, 1.0, 11.0)
    assert summary.fill == 2
    assert summary.samples == 480
    text = summary_text(summary, tmp_path, width)
    assert text.isascii()
    assert all(len(line) <= width for line in text.splitlines())
    if width == 110:
        assert "job         job finished after 10.0 s" in text
        assert "1, in 45 ms (median), at most 45 ms" in text
        assert "loss 0.5, bad not finite" in text
