"""Makes the part-classification data set of PACO: every object of at least 1 % of its image becomes an image.

Where the files go and what comes out: datasets/README.md. Counts first, which needs the jsons only:

    part-robust prepare-paco --dry-run
    part-robust prepare-paco                      # json only, crops are cut while loading
    part-robust prepare-paco --sources lvis       # without Ego4D
    part-robust prepare-paco --mode thesis --output datasets/paco_thesis
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from part_robust.data.preparation.paco import MODES, PacoOptions, count_paco, prepare_paco, thesis_rules
from part_robust.data.preparation.paco_crops import CropRules
from part_robust.data.preparation.paco_files import search_roots
from part_robust.data.preparation.pipeline import default_workers
from part_robust.data.preparation.report import scan_text
from part_robust.utils.errors import PREPARATION, user_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    rules = CropRules()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=root, help=f"folder of all data sets (default {root})")
    parser.add_argument("--output", type=Path, help="folder to write (default ROOT/paco)")
    parser.add_argument("--annotations", type=Path, help="folder of paco_*_v1_*.json (default: searched below ROOT)")
    parser.add_argument("--coco-images", type=Path, help="folder of train2017/ and val2017/ (default: searched)")
    parser.add_argument("--ego4d-images", type=Path, help="folder of the Ego4D frames (default: searched)")
    parser.add_argument("--sources", nargs="+", choices=["lvis", "ego4d"], default=["lvis", "ego4d"])
    parser.add_argument("--ego4d-test", action="store_true", help="use Ego4D's test file too (not in the thesis)")
    parser.add_argument("--mode", choices=MODES, default="grouped", help="which splits (default grouped, leak-free)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    parser.add_argument("--dry-run", action="store_true", help="print the count table and stop; needs no images")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: all cores)")
    parser.add_argument("--restart", action="store_true", help="replace what an earlier run left in the output")
    parser.add_argument("--allow-missing", action="store_true", help="count and skip images that do not exist")
    parser.add_argument("--expand", type=float, default=rules.expand, help="factor on the box (default 1.5)")
    parser.add_argument("--min-area", type=float, default=0.01, help="smallest box / image area kept (default 0.01)")
    parser.add_argument("--small-objects", choices=["paint", "background", "ignore"], default=rules.small_objects)
    parser.add_argument("--object-rest", choices=["background", "ignore"], default=rules.object_rest)
    parser.add_argument("--partless", choices=["none", "object"], default=rules.partless)
    parser.add_argument("--materialize", choices=["none", "jpeg", "png"], default="none", help="write the crops")
    parser.add_argument(
        "--long-side", type=int, default=rules.long_side, help="of written crops (default 256, 0 keeps)"
    )
    parser.add_argument("--no-upsample", action="store_true", help="do not enlarge small crops")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = args.output or args.root / "paco"
    rules = CropRules(
        expand=args.expand,
        small_objects=args.small_objects,
        object_rest=args.object_rest,
        partless=args.partless,
        materialize=args.materialize,
        long_side=args.long_side,
        upsample=not args.no_upsample,
    )
    options = PacoOptions(
        mode=args.mode,
        sources=tuple(args.sources),
        ego4d_test=args.ego4d_test,
        seed=args.seed,
        min_area=args.min_area,
        rules=thesis_rules(rules) if args.mode == "thesis" else rules,
        allow_missing=args.allow_missing,
    )
    roots = search_roots(args.root, args.annotations, args.coco_images, args.ego4d_images)
    # RuntimeError: counts that are not the published ones, or a folder that another run writes to.
    with user_errors(RuntimeError, *PREPARATION):
        if args.dry_run:
            scan = count_paco(roots, options)
            print(scan_text(scan.checks, (scan.tally, scan.noted), scan.notes))
            return 0
        written = prepare_paco(roots, output, options, args.workers, args.restart)
    for split, path in written.items():
        print(f"{split}: {path}")
    print(f"report: {output / 'report.md'}")
    return 0
