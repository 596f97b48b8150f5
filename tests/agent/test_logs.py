import os
import threading

import pytest

from orch_core.agent import logs
from orch_core.agent.logs import LINE_LIMIT, Lines, LogPump, clean


def shown(*chunks):
    """What is shown of the chunks, and of the end."""
    lines = Lines()
    return "".join([lines.feed(chunk, 0.0) for chunk in chunks]) + lines.end()


def test_lines_are_put_together_from_any_pieces():
    text = "größe ✓\nzweite\n\nlast without an end".encode()
    for size in range(1, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert shown(*pieces) == "größe ✓\nzweite\n\nlast without an end\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_progress_bar_is_its_last_state(size):
    text = b"".join(b"\r%3d %%" % i for i in range(101)) + b"\ndone\n"
    assert shown(*[text[i : i + size] for i in range(0, len(text), size)]) == "100 %\ndone\n"


def test_windows_line_ends_are_line_ends():
    assert shown(b"one\r", b"\ntwo\r\n") == "one\ntwo\n"


def test_bytes_that_are_no_text_become_replacement_marks():
    assert shown(b"\xff\xfe\x00\xc3( not utf-8 \x1b[31m\n") == "\ufffd\ufffd\ufffd( not utf-8 \n"


def test_a_line_of_megabytes_is_cut_and_says_how_much_is_missing():
    text = shown(*[b"x" * 65536] * 32, b"\nnext\n")
    assert text == "x" * LINE_LIMIT + f" [... {32 * 65536 - LINE_LIMIT} more bytes, see the log]\nnext\n"
    assert shown(b"y" * 10000 + b"\nnext\n").startswith("y" * LINE_LIMIT + " [... 5904 more bytes")
    assert shown(b"a\n" + b"y" * 10000 + b"\nnext\n").endswith("5904 more bytes, see the log]\nnext\n")


def test_memory_stays_bounded_without_a_line_end():
    lines = Lines()
    for _ in range(100):
        lines.feed(b"z" * 65536, 0.0)
        lines.feed(b"\r", 0.0)
    assert len(lines.tail) <= LINE_LIMIT + 1


def test_a_prompt_without_a_line_end_is_shown_after_a_while():
    lines = Lines()
    assert lines.feed(b"loading ...", 100.0) == ""
    assert lines.overdue(100.5) == ""
    assert lines.overdue(100.0 + logs.IDLE_S) == "loading ...\n"
    assert lines.feed(b" done\n", 102.0) == " done\n"


def test_a_busy_progress_bar_is_shown_now_and_then():
    lines = Lines()
    told = ""
    for tenth in range(200):
        now = 100.0 + tenth / 10
        lines.feed(b"\r%d" % tenth, now)
        told += lines.overdue(now)
    assert 2 <= told.count("\n") <= 4


def test_nothing_moves_a_cursor_or_a_title():
    assert clean("a\x1b[2Jb\x1b]0;title\x07c\x1b[1;31md\x07\x08e\x9bf\u202eg\tö") == "abcdefg\tö"


@pytest.fixture
def pump():
    told, warned, changed = [], [], threading.Event()

    def show(worker, text):
        told.append((worker, text))
        changed.set()

    one = LogPump(show, warned.append)
    one.told, one.warned, one.changed = told, warned, changed
    one.start()
    yield one
    one.close()


def test_every_byte_goes_to_the_file_and_lines_to_the_audience(pump, tmp_path):
    data = bytes(range(256)) * 1000 + b"\nEND"
    write = pump.open("w0.1", tmp_path / "log")
    sent = threading.Thread(target=lambda: (os.write(write, b""), write_all(write, data), os.close(write)))
    sent.start()
    sent.join()
    pump.close()
    assert (tmp_path / "log").read_bytes() == data
    assert pump.told[-1] == ("w0.1", "END\n")


def test_a_pipe_that_somebody_else_holds_open_is_left_after_its_worker(pump, tmp_path):
    write = pump.open("w0.1", tmp_path / "log")
    os.write(write, b"last words\n")
    pump.changed.wait(10)
    pump.ended("w0.1")
    pump.close()
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    assert pump.told == [("w0.1", "last words\n")]


def test_a_full_disk_is_said_once_and_the_lines_are_still_shown(pump):
    write = pump.open("w0.1", "/dev/full")
    os.write(write, b"one\n")
    os.write(write, b"two\n")
    os.close(write)
    pump.close()
    assert "".join(text for _, text in pump.told) == "one\ntwo\n"
    assert len(pump.warned) == 1
    assert "the disk is full" in pump.warned[0]


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]
