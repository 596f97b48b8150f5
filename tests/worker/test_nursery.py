"""Which of a script's imports the nursery makes. As a process it is tested in tests/agent, with its agent."""

import ast
import textwrap

import pytest

from orch_core.worker import nursery


@pytest.fixture
def beginning(tmp_path):
    def read(source):
        return [ast.unparse(s) for s in nursery.beginning(ast.parse(textwrap.dedent(source)), str(tmp_path))]

    return read


def test_the_imports_that_a_script_begins_with_are_taken(beginning):
    assert beginning(
        '''
        """What it is."""
        from __future__ import annotations
        import math, os.path
        import numpy as np
        from torch import nn
        from sklearn.datasets import load_digits
        import orch_core as orch
        run = orch.init()
        import json
        '''
    ) == [
        "import math, os.path",
        "import numpy as np",
        "from torch import nn",
        "from sklearn.datasets import load_digits",
        "import orch_core as orch",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''",
        "import mine",
        "from . import sibling",
        "import surely_absent_qz",
        "try:\n    import json\nexcept ImportError:\n    pass",
        "if True:\n    import json",
    ],
)
def test_nothing_behind_a_line_that_may_do_anything_is_taken(beginning, tmp_path, line):
    (tmp_path / "mine.py").write_text("")
    assert beginning(f"import os\n{line}\nimport math") == ["import os"]


def test_a_file_beside_the_script_hides_the_installed_module(beginning, tmp_path):
    (tmp_path / "random.py").write_text("")
    assert beginning("import math\nimport random\nimport json") == ["import math"]


def test_what_its_user_works_on_is_not_taken(beginning, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "library_of_mine_qz.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(elsewhere)
    assert beginning("import math\nimport library_of_mine_qz") == ["import math"]


def test_an_import_that_fails_is_left_to_the_script(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text("import math\nfrom math import surely_absent_qz\nimport json")
    nursery.load_beginning(str(script), str(tmp_path))
    assert "surely_absent_qz" in capsys.readouterr().err
    nursery.load_beginning(str(tmp_path / "absent.py"), str(tmp_path))
    script.write_text("x = = 1")
    nursery.load_beginning(str(script), str(tmp_path))
