"""Package declaration. Exact tested versions: requirements.txt; `make install` does the whole set-up.

detectron2 is not declared as a requirement because package registries do not have it: see tools/install.py.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def runtime_requirements():
    """Names of the [torch] and [runtime] sections; versions stay free so that clusters keep theirs."""
    text = (ROOT / "requirements.txt").read_text()
    wanted = re.findall(r"# \[(?:torch|runtime)\].*\n((?:[^#\n].*\n)+)", text)
    return sorted({re.split(r"[=<>; @]", line)[0] for line in "".join(wanted).splitlines()})


setup(
    name="part_robust",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "part_robust" / "__init__.py").read_text()).group(1),
    description="Part-based image classifiers that withstand adversarial images, as a Detectron2 extension",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["part_robust", "part_robust.*"]),
    package_data={"part_robust": ["py.typed"]},
    install_requires=runtime_requirements(),
    extras_require={
        # The official AutoAttack, to score a model with code that is not ours.
        "aa": ["pyautoattack>=0.2.0"],
        # Backbones of timm (MODEL.TIMM).
        "timm": ["timm>=1.0.20"],
        # What tools/export_model.py --format onnx needs.
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        # Noise, blur, weather, compression (tools/corruptions.py).
        "corruptions": ["imagecorruptions-imaug>=1.1.5"],
    },
)
