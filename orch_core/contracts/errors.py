"""One tree of errors, a class per decision that the caller can take.

::

    OrchError
    ├── ConfigurationError      the user must change something; exit 2
    │   ├── PluginError         ... about what is installed or chosen
    │   └── LoopError           ... about how the script uses the two loops
    ├── ScriptFailed            a worker's script raised; exit 1
    ├── MalformedMessage        a peer or a file speaks nonsense: drop it, say so
    ├── Unreachable             no coordinator answers, or none leads: try again later
    ├── LeadershipLost          stop leading; somebody else writes the document now
    ├── ViewBroken              leave the view and wait for the next plan; never reaches a script
    └── StrategyError           a sync strategy breaks its rules; exit 1
"""


class OrchError(Exception):
    """Whatever orch raises on purpose. The text is one sentence that says what to do."""


class ConfigurationError(OrchError):
    """The user must change a flag, a file or the script. Trying again does not help."""


class PluginError(ConfigurationError):
    """An unknown, doubled, outdated, misspelt or broken plugin."""


class LoopError(ConfigurationError):
    """The script uses ``epochs``, ``batches`` or a batch in a way that cannot give the same weights everywhere."""


class ScriptFailed(OrchError):
    """A worker's script raised an exception."""


class MalformedMessage(OrchError):
    """Bytes from a peer or from a file that are not what they should be."""


class Unreachable(OrchError):
    """No coordinator of the job answers, or none of them leads."""


class LeadershipLost(OrchError):
    """This replica is no longer the one writer, or cannot know whether its last write is in."""


class ViewBroken(OrchError):
    """The group of the present view is closed. Raised inside orch only."""


class StrategyError(OrchError):
    """A gradient sync strategy breaks a rule of its contract. Names strategy, bucket and shard."""
