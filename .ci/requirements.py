"""Print what every distribution of this tree needs from elsewhere, one requirement per argument, for `make`.

    requirements.py PYPROJECT...

Extras and dependency groups are included; the tree's own distributions are not: they are installed as editables.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path) -> list[str]:
    table = tomllib.loads(pyproject.read_text())
    project = table["project"]
    lists = [
        project.get("dependencies", []),
        *project.get("optional-dependencies", {}).values(),
        *table.get("dependency-groups", {}).values(),
    ]
    return [requirement for listed in lists for requirement in listed if isinstance(requirement, str)]


if __name__ == "__main__":
    needed = {requirement for path in sys.argv[1:] for requirement in requirements(Path(path))}
    print("\n".join(sorted(r for r in needed if not re.match(r"orch[-_]", r))))
