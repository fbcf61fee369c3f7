#!/usr/bin/env python3
"""Installs part_robust and everything it needs into a virtual environment (standard library only).

`make install` calls it. Versions come from requirements.txt. An environment that this script did not
create (a cluster's module, a conda environment) keeps what it already has; only missing packages are added.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = ".created_by_part_robust"  # lies in environments whose versions are ours to set


def read_requirements() -> dict[str, list[str]]:
    """requirements.txt as {section: lines}; a section starts with a comment `# [name]`."""
    sections: dict[str, list[str]] = {}
    current = ""
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        header = re.match(r"#\s*\[(\w+)\]", line)
        if header:
            current = header.group(1)
            sections[current] = []
        elif line.strip() and not line.startswith("#"):
            sections[current].append(line.strip())
    return sections


def run(command: list[str], **environment: str) -> int:
    print("+ " + " ".join(command), flush=True)
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **environment})


def pip_install(python: str, *arguments: str) -> int:
    # One retry: package mirrors drop a connection now and then.
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return run(command) and run(command)


def is_installed(python: str, requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert name is not None, requirement
    check = f"import importlib.metadata as m; m.version({name.group(0)!r})"
    return subprocess.call([python, "-c", check], stderr=subprocess.DEVNULL) == 0


def has_detectron2(python: str) -> bool:
    check = "import detectron2.layers"
    return subprocess.call([python, "-c", check], stderr=subprocess.DEVNULL, cwd="/") == 0


def detectron2_source(default: str) -> str:
    """Return pip's argument: $DETECTRON2 (a folder, a wheel or a URL) or the pinned public commit."""
    own = os.environ.get("DETECTRON2", "").strip()
    if not own:
        return default
    if "://" in own:
        return own if own.endswith(".whl") or own.startswith("git+") else f"git+{own}"
    path = Path(own).expanduser()
    if not path.exists():
        sys.exit(f"DETECTRON2={own} does not exist: give a folder, a wheel or a URL of detectron2.")
    return str(path.resolve())


def install_detectron2(python: str, default: str) -> None:
    if has_detectron2(python):
        print("detectron2: this environment already has it, it stays")
        return
    source = detectron2_source(default)
    print("detectron2: compiling its C++ operators, a few minutes", flush=True)
    # It imports torch in setup.py and declares no build requirements, hence no build isolation.
    failed = pip_install(python, "--no-build-isolation", source)
    if failed or not has_detectron2(python):
        sys.exit(
            f"\ndetectron2 could not be installed. Tried: pip install --no-build-isolation '{source}'\n"
            "(the reason stands above: no network access to it, or no C++ compiler). Two ways out:\n"
            "  1. bring your own copy:   DETECTRON2=<folder, wheel or URL> make install\n"
            "  2. use an environment that has detectron2:   make install VENV=<its folder>"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv", help="virtual environment, made if missing")
    venv = (ROOT / parser.parse_args().venv).absolute()
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"part_robust needs Python 3.10 to 3.13, this is {sys.version.split()[0]}: make PYTHON=...")
    if not venv.exists():
        if run([sys.executable, "-m", "venv", str(venv)]):
            sys.exit("python3 -m venv failed (Debian and Ubuntu: apt-get install python3-venv)")
        (venv / MARKER).touch()
    python = str(venv / "bin" / "python")
    ours = (venv / MARKER).exists()

    sections = read_requirements()
    for name in ("build", "torch", "detectron2", "runtime", "indirect", "dev"):
        if name == "detectron2":
            install_detectron2(python, sections[name][0])
            continue
        wanted = [line for line in sections[name] if ours or not is_installed(python, line)]
        if wanted and pip_install(python, *wanted):
            sys.exit(f"pip could not install: {' '.join(wanted)}")
    if pip_install(python, "--no-deps", "--no-build-isolation", "--editable", "."):
        sys.exit("pip could not install part_robust itself")
    print(f"part_robust is installed in {venv.name}")


if __name__ == "__main__":
    main()
