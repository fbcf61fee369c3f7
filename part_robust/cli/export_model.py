r"""Writes a trained classifier without what its class does not need, or as one file that runs without part_robust.

    part-robust export --config-file paco/dino_two_headed_adv.yaml --output exported/dino \
        MODEL.WEIGHTS output/paco/dino_two_headed_adv/model_best.pth
    part-robust export --format torchscript --config-file ... --output exported/dino MODEL.WEIGHTS ...

--format weights (default): model.pth without optimizer, detection branch and decoder, and config.yaml, which every tool
takes as `--config-file`. torchscript, pt2 (torch.export) and onnx: model.ts, model.pt2 or model.onnx, float32 images
(N, 3, SIZE, SIZE), RGB, 0..255 -> class logits (N, C), compared with the model before the file is kept
(docs/models.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from part_robust import load_config
from part_robust.engine.export import export_classifier
from part_robust.engine.export_graph import KINDS, export_graph
from part_robust.engine.external import refuse_external
from part_robust.utils.errors import PREPARATION, user_errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--format", choices=["weights", *KINDS], default="weights")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs, such as MODEL.WEIGHTS")
    args = parser.parse_intermixed_args(arguments)
    # RuntimeError: a graph that cannot be exported, or computes something else.
    with user_errors(RuntimeError, *PREPARATION):
        cfg = load_config(args.config_file, args.opts)
        refuse_external(cfg, "an export")
        if args.format == "weights":
            exported = export_classifier(cfg, args.output)
        else:
            graph = export_graph(cfg, args.output, args.format)
    if args.format != "weights":
        print(f"{graph.path}: logits equal the model's, largest difference {graph.difference:.2g}\n{graph.description}")
        return
    what = "the part branch is dropped" if exported.parts_dropped else "the class reads the parts: nothing is dropped"
    print(
        f"{exported.weights}: {exported.parameters_after / 1e6:.3f} of {exported.parameters_before / 1e6:.3f} M "
        f"parameters ({what})\nconfig: {exported.config}"
    )
