"""The one direction of imports: cli -> runs -> engine -> {evaluation, attacks, modeling, data}, and so on down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from part_robust.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "part_robust"

# Who may import whom, by the first component below part_robust; every component may import itself and utils.
ALLOWED = {
    "utils": set(),
    "attacks": set(),
    "config": {"attacks"},
    "layers": set(),
    "structures": set(),
    "data": set(),
    "losses": {"layers", "structures"},
    "modeling": {"losses", "layers", "structures"},
    "evaluation": {"attacks", "modeling", "data", "layers", "config", "configured_attacks", "run_config", "visualize"},
    "visualize": set(),
    "run_config": {"attacks", "config", "data", "modeling"},
    "configured_attacks": {"attacks", "config", "modeling"},
    "engine": {
        *("evaluation", "attacks", "modeling", "data", "layers", "structures", "config", "run_config"),
        *("configured_attacks", "visualize"),
    },
    "runs": {"engine", "evaluation", "attacks", "data", "config", "configured_attacks", "run_config", "visualize"},
    "model_zoo": {"config", "engine", "run_config"},
    "cli": {
        *("runs", "engine", "evaluation", "attacks", "modeling", "data", "configured_attacks", "run_config"),
        "visualize",
    },
    "__main__": {"cli"},
}
# Names of part_robust/__init__.py, by the component they come from.
OFFERED = {
    "build_attack": "attacks",
    "get_part_robust_cfg": "config",
    "load_config": "run_config",
    "register_builtin": "data",
    "register_part_dataset": "data",
}
# Importing the package registers everything, and is about as fast as detectron2.modeling: no training, no plots.
ALLOWED["__init__"] = {"attacks", "config", "data", "model_zoo", "modeling", "run_config"}


def imports_of(path: Path) -> set[str]:
    """Components of part_robust that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = [node.module or ""]
            if node.module == "part_robust":
                # A name that is a module, or one that __init__ offers.
                names = [f"part_robust.{OFFERED.get(alias.name, alias.name)}" for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("part_robust."))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path):
    component = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    forbidden = imports_of(path) - ALLOWED[component] - {component, "utils"}
    assert not forbidden, f"{component} must not import {sorted(forbidden)}"


def test_every_rule_is_needed():
    """Each component has a rule, and imports everything that it allows."""
    used: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        component = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        used.setdefault(component, set()).update(imports_of(path) - {component, "utils"})
    assert used == ALLOWED


def test_nothing_of_ours_is_imported_for_types_only():
    """`if TYPE_CHECKING` hides a cycle: what both sides name belongs into part_robust/structures.py."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                assert "part_robust" not in ast.unparse(node), path


def test_devices_come_from_tensors():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert ".cuda(" not in text, path
        assert 'device="cuda"' not in text and "device='cuda'" not in text, path


def test_tests_share_helpers_and_not_tests():
    """What several of them need is in a conftest.py or a module of its own, so that each can be read alone."""
    for path in Path(__file__).parent.rglob("*.py"):
        froms = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in froms if name.startswith("tests.") and ".test_" in name], path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_scripts_are_the_commands(command):
    """tools/x.py and datasets/x.py run `part_robust.cli.x.main`, and nothing else."""
    name = command.module.removeprefix("cli.")
    scripts = [path for folder in ("tools", "datasets") if (path := ROOT / folder / f"{name}.py").is_file()]
    assert len(scripts) == (command.module != "data.check")
    for script in scripts:
        body = [node for node in ast.parse(script.read_text()).body if not isinstance(node, ast.Expr)]
        assert [ast.unparse(node) for node in body] == [
            "import sys",
            f"from part_robust.cli.{name} import main",
            "if __name__ == '__main__':\n    sys.exit(main())",
        ]
