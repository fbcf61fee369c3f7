"""Checks that need no model: what the numbers of a record say about each other.

`E` is one data set's entry in the record's `evaluation` (docs/report.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from part_robust.evaluation.checks.result import FAIL, PASS, SKIPPED, WARNING, Finding
from part_robust.evaluation.statistics import wilson_interval

BLACK_BOX = ("square",)
FEW_IMAGES = 1000


def wilson(correct: int, total: int) -> tuple[float, float]:
    """`wilson_interval` of 95 %, per cent."""
    low, high = wilson_interval(correct, total)
    return 100.0 * low, 100.0 * high


def class_tiers(E: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Tiers that count images whose class is right; the others count pixels."""
    tiers = (E.get("tiers") or {}).items()
    return {tier: values for tier, values in tiers if str(values.get("objective", "class")).startswith("class")}


def _accuracies(E: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All class accuracies with correct, accuracy, interval; without a class head there are none."""
    tiers = {tier: values["robust"] for tier, values in class_tiers(E).items() if values.get("robust")}
    clean = E.get("clean")
    if clean and clean["correct"] <= (E.get("num_images") or 0):
        return {"clean": clean, **tiers}
    return tiers


def check_flags(E: Mapping[str, Any], flags: Mapping[str, np.ndarray]) -> Finding | None:
    """C5: the flags of the images add up to the numbers, and every image that the tier broke counts as broken."""
    if not flags:
        return None
    findings = []
    numbers = _accuracies(E)
    for name, key in (("clean", "clean_correct"), *((tier, f"robust_{tier}") for tier in class_tiers(E))):
        if key in flags and name in numbers and int(flags[key].sum()) != numbers[name]["correct"]:
            findings.append(
                f"{int(flags[key].sum())} flags of {key} are set, the record says {numbers[name]['correct']}"
            )
    for tier, values in class_tiers(E).items():
        robust = flags.get(f"robust_{tier}")
        if robust is None:
            continue
        broken = np.zeros(len(robust), dtype=bool)
        # Another tier may have run the attacks on images outside of this one's sample.
        sampled, drawn = (values.get("bound") or {}).get("attacks", ()), flags.get(f"sampled_{tier}", broken)
        for attack in values.get("attacks") or ():
            fooled = flags.get(f"fooled_{attack['name']}", broken).astype(bool)
            broken |= fooled & drawn if attack["name"] in sampled else fooled
        both = int((robust.astype(bool) & broken).sum())
        if both:
            findings.append(f"{both} images count as robust in {tier} although an attack of it broke them")
    if findings:
        return Finding(FAIL, "; ".join(findings), float(len(findings)))
    return Finding(PASS, "the flags of the images add up to the numbers", 0.0)


def check_rescored(E: Mapping[str, Any]) -> Finding | None:
    """C5: saved images, scored in a fresh process, keep their verdicts."""
    found = E.get("rescored")
    if not found:
        return None
    sentence = f"{found['mismatches']} of {found['images']} saved images have another verdict in a fresh process"
    return Finding(FAIL if found["mismatches"] else PASS, sentence, float(found["mismatches"]))


def check_losses_alone(E: Mapping[str, Any], attacks: Mapping[str, Mapping]) -> Finding | None:
    """C8: attacks on the cross-entropy leave at most 5 points more than those on margins.

    Where an attack on margins ran only on what others had left, what stood after it counts. All are of the headline's
    threat model.
    """
    groups: dict[bool, list[float]] = {True: [], False: []}
    tiers = [
        values
        for values in class_tiers(E).values()
        if all(values.get(key, E.get(key)) == E.get(key) for key in ("norm", "eps"))
    ]
    for row in (row for values in tiers for row in values.get("attacks") or ()):
        if _is_black_box(row["name"], attacks) or row.get("restart"):
            continue
        words = str(attacks.get(row["name"], {}).get("objective", row["name"])).lower().replace("-", "_")
        by_cross_entropy = words == "cross_entropy" or "ce" in words.split("_")
        value = row.get("accuracy_alone")
        if value is None and not by_cross_entropy:
            value = row.get("accuracy_after")
        if value is not None:
            groups[by_cross_entropy].append(value)
    if not groups[True] or not groups[False]:
        return None
    gap = min(groups[True]) - min(groups[False])
    sentence = (
        f"{min(groups[True]):.1f} % are right under the cross-entropy alone, {min(groups[False]):.1f} % with margins"
    )
    return Finding(FAIL if gap > 5.0 else PASS, sentence, gap)


def check_order(E: Mapping[str, Any]) -> Finding | None:
    """C9: more eps, more attacks and stronger tiers break no fewer images."""
    sequences: list[tuple[str, list[float]]] = []
    curve = sorted(E.get("eps_curve") or [], key=lambda point: point["eps"])
    if len(curve) > 1:
        sequences.append(("growing eps", [point["accuracy"] for point in curve]))
    clean = [E["clean"]["accuracy"]] if "clean" in _accuracies(E) else []
    for tier, values in class_tiers(E).items():
        after = [row["accuracy_after"] for row in values.get("attacks") or () if row.get("accuracy_after") is not None]
        if values.get("robust"):
            sequences.append((f"the attacks of {tier}", clean + after + [values["robust"]["accuracy"]]))
    if not sequences:
        return None
    worst = 0.0
    for name, accuracies in sequences:
        rise = max((b - a for a, b in zip(accuracies, accuracies[1:], strict=False)), default=0.0)
        worst = max(worst, rise)
        if rise > 0.5:
            return Finding(FAIL, f"along {name} accuracy rises by {rise:.2f} points", rise)
    return Finding(PASS, f"accuracy never rises along {' or '.join(name for name, _ in sequences)}", worst)


def check_regions_alive(E: Mapping[str, Any]) -> Finding | None:
    """C7: inside every attacked region, every image has a gradient."""
    local = E.get("local")
    if not local:
        return None
    dead = [row for row in local["table"] if row["zero_gradient"]]
    worst = max((100.0 * row["zero_gradient"] / row["attacked"] for row in dead), default=0.0)
    if dead:
        counts = ", ".join(f"{row['zero_gradient']} of {row['attacked']} in {row['region']}" for row in dead)
        return Finding(FAIL, f"tier {local['tier']}: images whose gradient is zero inside the region: {counts}", worst)
    return Finding(PASS, f"tier {local['tier']}: every image has a gradient inside each of its regions", worst)


def check_nested_regions(E: Mapping[str, Any]) -> Finding | None:
    """C9: what an attack on a part breaks, the attack on the whole object breaks, too."""
    local = E.get("local") or {}
    row = next((row for row in local.get("table") or () if "missed" in row), None)
    if row is None:
        return None
    points = 100.0 * row["missed"] / max(row["images"], 1)
    sentence = (
        f"tier {local['tier']}: {row['missed']} of {row['images']} images are broken inside one part and were not by "
        "the attacks on the whole object, which may change the same pixels"
    )
    if row["missed"] > 1 and points > 0.5:
        remedy = "the attacks are stuck: more STEPS or RESTARTS for those of TEST.TIERS.local"
        return Finding(FAIL, sentence, points, level=WARNING, remedy=remedy)
    return Finding(PASS, sentence, points)


def check_curves(E: Mapping[str, Any]) -> Finding | None:
    """C10: the last tenth of the steps gains at most 5 % of the range of the mean loss."""
    worst, where = 0.0, ""
    curves = {name: values for name, values in (E.get("convergence") or {}).items() if len(values) >= 10}
    if not curves:
        return None
    for name, values in curves.items():
        # What counts is the best so far: losses of a run may oscillate, and restarts begin low again.
        best = np.maximum.accumulate(np.nan_to_num(np.asarray(values, dtype=float), nan=-np.inf))
        best = best[np.isfinite(best)]
        if len(best) < 10 or best[-1] <= best[0]:
            continue
        gain = float((best[-1] - best[-max(len(best) // 10, 2)]) / (best[-1] - best[0]))
        if gain > worst:
            worst, where = gain, name
    sentence = f"the last tenth of the steps brought at most {100 * worst:.1f} % of the loss's gain"
    if worst > 0.05:
        return Finding(FAIL, f"{sentence} ({where})", 100 * worst)
    return Finding(PASS, sentence, 100 * worst)


def check_square(E: Mapping[str, Any], attacks: Mapping[str, Mapping]) -> Finding | None:
    """C13: black-box attacks at the end of a tier break at most 0.2 points more; of a sample, the share counts."""
    worst, name = None, ""
    for values in class_tiers(E).values():
        before, bound = None, values.get("bound") or {}
        for row in values.get("attacks") or ():
            after = row.get("accuracy_after")
            if after is None:
                continue
            if _is_black_box(row["name"], attacks) and before is not None:
                gain = before - after
                if row["name"] in bound.get("attacks", ()):
                    gain *= bound["stood"] / max(bound["drawn"], 1)
                if worst is None or gain > worst:
                    worst, name = gain, row["name"]
            before = after
    if worst is None:
        return None
    sentence = f"{name} broke {worst:.2f} points of the images that the attacks before it had not broken"
    return Finding(FAIL if worst > 0.2 else PASS, sentence, worst)


def check_siblings(E: Mapping[str, Any]) -> Finding | None:
    """C14: images made for other models break at most half a point more than the headline's attacks."""
    found = E.get("transfer")
    if not found:
        return None
    who = ", ".join(row["name"] for row in found["siblings"])
    unbroken = found["standing"]
    tried = max((row.get("images", unbroken) for row in found["siblings"]), default=0)
    if not tried:
        return Finding(SKIPPED, f"images made for {who} are of none of the {unbroken} images that were not broken")
    some = f" (at most {tried} were tried)" if tried < unbroken else ""
    sentence = f"images made for {who} broke {found['broke']} of the {unbroken} images that were not broken{some}"
    points = 100.0 * found["broke"] / max(E.get("num_images") or 0, 1)
    return Finding(FAIL if found["broke"] > 1 and points > 0.5 else PASS, sentence, points)


def check_heads(E: Mapping[str, Any]) -> Finding:
    """C18: class and parts each attacked through their own loss, and a joint one is not weaker than they are."""
    rows = [row for row in E.get("attack_matrix") or () if row.get("head")]
    heads, tiers = {row["head"] for row in rows}, E.get("tiers") or {}
    metrics = {"class": ("accuracy",), "part": ("pixel_accuracy", "mIoU", "AP")}
    for head, names in metrics.items():
        scored = [name for name in names if any(row.get(name) is not None for row in rows)]
        if scored and head not in heads:
            attacked = " and ".join(sorted(heads))
            return Finding(FAIL, f"{scored[0]} was scored under attacks on {attacked}, none of them on the {head} head")
    if not rows:
        return Finding(SKIPPED, "the record has no attack")
    # Tiers of parts are the worst of the attacks listed below them, the joint ones among them.
    worst = {
        name for name, tier in tiers.items() if any(attack["name"] != name for attack in tier.get("attacks") or ())
    }
    single = [row for row in rows if row["head"] != "joint" and not (row["head"] == "part" and row["attack"] in worst)]
    for joint in (row for row in rows if row["head"] == "joint"):
        for head, names in metrics.items():
            for name in (name for name in names if joint.get(name) is not None):
                best = min((r[name] for r in single if r["head"] == head and r.get(name) is not None), default=None)
                if best is not None and joint[name] > best + 0.5:
                    numbers = f"{joint['attack']} leaves {joint[name]:.1f} % {name}, one on the {head} {best:.1f} %"
                    return Finding(FAIL, f"{numbers}: its own are not worst case", joint[name] - best)
    return Finding(PASS, f"attacks on {' and '.join(sorted(heads))}, each head through its own loss")


def check_intervals(E: Mapping[str, Any]) -> Finding:
    """C19: every accuracy has its interval, and it is the right one."""
    numbers = _accuracies(E)
    if not numbers:
        return Finding(SKIPPED, "the record has no accuracies")
    total = E.get("num_images") or 0
    for name, value in numbers.items():
        interval = value.get("interval")
        if not interval:
            return Finding(FAIL, f"accuracy {name} has no interval")
        if value["correct"] > total:
            return Finding(FAIL, f"{name} has {value['correct']} of {total} images right")
        expected = wilson(value["correct"], total)
        if max(abs(a - b) for a, b in zip(interval, expected, strict=True)) > 0.1:
            stated = _interval(interval)
            return Finding(FAIL, f"{name} states {stated}, {value['correct']} of {total} give {_interval(expected)}")
    name, value = list(numbers.items())[-1]
    half = (value["interval"][1] - value["interval"][0]) / 2
    return Finding(PASS, f"{name} {value['accuracy']:.1f} % {_interval(value['interval'])}, Wilson 95 %", half)


def check_size(E: Mapping[str, Any]) -> Finding:
    """C20: at least 1000 images, of a list that others can have."""
    total = E.get("num_images") or 0
    if not E.get("image_list_sha256"):
        return Finding(
            FAIL, "the list of images has no hash, so the same images cannot be evaluated again", float(total)
        )
    if total < FEW_IMAGES:
        low, high = wilson(total // 2, total)
        return Finding(
            FAIL, f"{total} images: half right would be known to +-{(high - low) / 2:.1f} points", float(total)
        )
    return Finding(PASS, f"{total} images of a fixed list", float(total))


def check_matching(E: Mapping[str, Any], attacks: Mapping[str, Mapping]) -> Finding | None:
    """C21: detectors attacked with the matching solved anew and frozen, the worse reported."""
    pairs: dict[str, dict[bool, Mapping]] = {}
    for row in E.get("attack_matrix") or ():
        objective = str(attacks.get(row.get("attack"), {}).get("objective", row.get("attack")))
        base, fixed = objective.removesuffix("_fixed"), objective.endswith("_fixed")
        if base in ("part_loss", "joint") and (base == "part_loss" or row.get("AP") is not None):
            pairs.setdefault(base, {})[fixed] = row
    if not pairs:
        return None
    for base, pair in pairs.items():
        if len(pair) == 1:
            other = "solved anew" if True in pair else "frozen"
            # An attack that is a row of its own in the record claims no worst case.
            alone = all(row.get("attack") in (E.get("tiers") or {}) for row in pair.values())
            sentence = f"{base} was not attacked with the matching {other}"
            return Finding(FAIL, sentence, level=WARNING if alone else "")
    gaps = [
        abs(pair[True][metric] - pair[False][metric])
        for pair in pairs.values()
        for metric in ("accuracy", "AP")
        if all(pair[fixed].get(metric) is not None for fixed in (True, False))
    ]
    gap = max(gaps, default=0.0)
    return Finding(PASS, f"matching frozen and anew differ by {gap:.2f} points at most; the worse one counts", gap)


def _is_black_box(name: str, attacks: Mapping[str, Mapping]) -> bool:
    kind = str(attacks.get(name, {}).get("attack", name)).lower()
    return any(word in kind for word in BLACK_BOX)


def _interval(values: Sequence[float]) -> str:
    return f"[{values[0]:.1f}, {values[1]:.1f}]"
