"""`orch scale`, `drain` and `evict`: what they send, and what they refuse."""

import pytest

from orch_core.agent import folder as folders
from orch_core.cli import main
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.job import JobSpec
from orch_core.rpc import client

STATUS = {"version": 1, "workers": [{"id": "w0.1"}, {"id": "w1.3"}, {"id": "w10.1"}]}


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """A living job, and every command that reaches its leader."""
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    one = folders.claim(tmp_path, "job")
    one.describe(JobSpec(name="job"), 1)
    commands = []
    monkeypatch.setattr(client, "inspect", lambda addresses, token: STATUS)
    monkeypatch.setattr(client, "command", lambda addresses, token, name, args: commands.append((name, dict(args))))
    yield commands
    one.close()


@pytest.fixture
def orch(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main.main(list(args))
        told = capsys.readouterr()
        return caught.value.code, told.out, told.err

    return run


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["scale", "3"], ("scale", {"workers": "3"})),
        (["drain", "w1"], ("drain", {"worker": "w1.3", "replace": "no"})),
        (["drain", "w1.2", "--replace"], ("drain", {"worker": "w1.2", "replace": "yes"})),
        (["evict", "w1", "--dead"], ("evict", {"worker": "w1.3"})),
        (["evict", "--dead", "w7"], ("evict", {"worker": "w7"})),
        (["stop"], ("stop", {})),
    ],
)
def test_an_order_reaches_the_leader_and_names_a_life(sent, orch, argv, command):
    code, out, err = orch(*argv)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert sent == [command]


@pytest.mark.parametrize(
    "argv", [["scale", "many"], ["scale", "-1"], ["scale"], ["drain"], ["evict", "w1"], ["evict", "--dead"]]
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(sent, orch, argv):
    code, out, err = orch(*argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert sent == []


def test_what_the_leader_refuses_is_one_sentence(sent, orch, monkeypatch):
    def refuse(*_):
        raise ConfigurationError("6 is more than the job's --max-workers 5")

    monkeypatch.setattr(client, "command", refuse)
    assert orch("scale", "6") == (2, "", "orch: 6 is more than the job's --max-workers 5\n")


def test_a_job_that_is_over_takes_no_orders(sent, orch, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "is_living", lambda path: False)
    code, _, err = orch("scale", "3", "--job", "job")
    assert code == 2
    assert "not running" in err
    assert sent == []
