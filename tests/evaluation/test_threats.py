"""TEST.THREATS: its text, its tiers, and the images that are right under every threat model."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from part_robust.attacks import attack_mode
from part_robust.config.threats import Threat, parse_threats
from part_robust.evaluation.breakdown import share
from part_robust.evaluation.checks import CheckSettings, record_checks
from part_robust.evaluation.checks.add import audit_threat, other_threats
from part_robust.evaluation.compare import Evaluated, NotComparable, compare
from part_robust.evaluation.plan import plan_attacks
from part_robust.evaluation.record import describe_evaluation, flags_of, metrics_of
from part_robust.evaluation.record_schema import check_record
from part_robust.evaluation.report.leaderboard import build_leaderboard
from part_robust.evaluation.report.render import render_html
from part_robust.evaluation.report.sections import build_report
from part_robust.evaluation.tiers import Tier
from part_robust.utils.errors import UserError
from tests.evaluation import check_models as models
from tests.evaluation import record_fixture
from tests.evaluation.tier_fixture import SmallPartModel, attack, evaluators, make_items, make_plan, run
from tests.toy import tiny_cfg

THREE = "linf:8/255 l2:2 l1:75"


@pytest.mark.parametrize("text", [THREE, " linf:8/255, l2:2.0,l1:75 ", "linf:0.03137254901960784/1 l2:4/2 l1:75.0"])
def test_radii_are_of_images_in_0_to_1(text):
    threats = parse_threats(text)
    assert [threat.name for threat in threats] == ["linf", "l2", "l1"] == [threat.norm for threat in threats]
    assert [threat.eps for threat in threats] == pytest.approx([8.0, 510.0, 19125.0])
    assert parse_threats(THREE)[0].eps == 8.0


def test_several_radii_of_a_norm_are_in_the_names():
    assert parse_threats("linf:4/255 l2:1 linf:8/255") == [
        Threat("linf_4", "linf", 4.0),
        Threat("l2", "l2", 255.0),
        Threat("linf_8", "linf", 8.0),
    ]
    assert parse_threats("") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("l3:2", "must be threat models such as .*, got 'l3:2'"),
        ("linf=8/255", "got 'linf=8/255'"),
        ("l2", "got 'l2'"),
        ("l2:", "got 'l2:'"),
        ("l2:-1", "got 'l2:-1'"),
        ("l2:1/0", "got 'l2:1/0'"),
        ("l2:nan l1:1", "got 'l2:nan'"),
        ("l2: 1", "got 'l2:'"),
        ("linf:8", "at most 1 under linf, got 'linf:8'.*linf:8/255"),
        ("l2:1 l2:255/255", "each threat model once"),
    ],
)
def test_wrong_ones_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_threats(text)


def planned(*opts):
    return plan_attacks(tiny_cfg("deeplab_two_headed", *opts))


def test_every_tier_on_the_class_runs_under_every_threat(toy_data):
    opts = ["TEST.TIER", "parts,standard,thesis,screen", "TEST.EPS", 4.0, "TEST.THREATS", THREE]
    attacks = planned(*opts)
    names = [tier.name for tier in attacks.tiers]
    of_class = [f"{tier}_{norm}" for tier in ("standard", "screen") for norm in ("linf", "l2", "l1")]
    assert names == [*of_class, "thesis", "parts"]
    assert {name: list(tiers) for name, tiers in attacks.unions.items()} == {
        "standard_union": of_class[:3],
        "screen_union": of_class[3:],
    }
    for tier in attacks.tiers[:6]:
        norm = tier.name.rsplit("_", 1)[1]
        assert (tier.threat_model.norm, tier.threat_model.eps) == (norm, {"linf": 8, "l2": 510, "l1": 19125}[norm])
        assert all(name.endswith(f"_{norm}") for name in tier.attacks)
    assert all(tier.threat_model.eps == 4.0 for tier in attacks.tiers[6:]), "the others are as TEST.EPS says"
    assert attacks.tiers[2].attacks["apgd_ce_l1"].describe()["radius_schedule"][0] == [3.0, 0.3]
    restarts = {name: attack.restarts for tier in attacks.tiers[:3] for name, attack in tier.attacks.items()}
    assert {name for name, number in restarts.items() if number == 5} == {"apgd_ce_l1"}, "as AutoAttack's L1 version"


def test_steps_of_pgd_keep_their_length_in_radii(toy_data):
    opts = ["TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"], "TEST.THREATS", "l2:2 linf:4/255"]
    steps = [attack.step_size for tier in planned(*opts).tiers for attack in tier.attacks.values()]
    assert steps == pytest.approx([510.0 / 4, 1.0])


def test_without_threats_everything_is_as_before(toy_data):
    attacks = planned("TEST.TIER", "screen,parts")
    assert [tier.name for tier in attacks.tiers] == ["screen", "parts"] and not attacks.unions
    single = planned("TEST.TIER", "screen", "TEST.THREATS", "l1:12")
    assert [tier.name for tier in single.tiers] == ["screen_l1"] and not single.unions


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["TEST.TIER", "parts"], "is for tiers on the class"),
        (["TEST.TIER", "thesis"], "is for tiers on the class"),
    ],
)
def test_threats_need_a_tier_on_the_class(toy_data, opts, words):
    with pytest.raises(ValueError, match=words):
        planned(*opts, "TEST.THREATS", THREE)


def threat_tiers() -> list[Tier]:
    radii = {"linf": 2.5, "l2": 30.0, "l1": 270.0}
    return [
        Tier(
            f"screen_{norm}",
            "class",
            {
                f"ce_{norm}": attack(NORM=norm, eps=eps),
                f"square_{norm}": attack("margin", "Square", NORM=norm, eps=eps, STEPS=15),
            },
        )
        for norm, eps in radii.items()
    ]


def evaluated(folder, batch_size=5, items=None):
    tiers = threat_tiers()
    unions = {"screen_union": [tier.name for tier in tiers]}
    items = items or make_items(SmallPartModel(), 40)
    plan = make_plan(tiers=tiers, curve={}, unions=unions, sample={item["image_id"] for item in items[:3]})
    merged, plan = run(folder, items, batch_size, plan)
    results = metrics_of(plan, merged, evaluators())
    entry = describe_evaluation(plan, merged, results, "CPU")
    return entry, flags_of(plan, merged), plan


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return evaluated(tmp_path_factory.mktemp("threats"))


def test_union_is_right_under_every_threat(found):
    entry, flags, plan = found
    union = entry["unions"]["screen_union"]
    each = {tier.name: flags[f"robust_{tier.name}"] for tier in plan.tiers}
    everything = np.all(list(each.values()), axis=0)
    assert np.array_equal(flags["robust_screen_union"], everything)
    assert union["robust"] == share(everything) and union["tiers"] == list(each)
    for name, right in each.items():
        others = np.all([flag for other, flag in each.items() if other != name], axis=0)
        assert union["broken_by_one"][name] == int((others & ~right).sum())
    numbers = {name: entry["tiers"][name]["robust"]["correct"] for name in each}
    assert 0 < union["robust"]["correct"] < min(numbers.values()), (
        numbers,
        "no threat model breaks all that another does",
    )
    assert entry["headline"] == "screen_linf" and entry["norm"] == "linf"


def test_same_after_an_interruption_and_for_any_batch_size(found, tmp_path):
    items = make_items(SmallPartModel(), 40)
    evaluated(tmp_path, 3, items[:9])
    entry, flags, _ = evaluated(tmp_path, 4, items)
    assert entry["unions"] == found[0]["unions"]
    for name, values in found[1].items():
        if name.startswith(("robust_", "fooled_", "broken_by_")):
            assert np.array_equal(values, flags[name]), name


def test_names_must_differ():
    tiers = threat_tiers()
    with pytest.raises(ValueError, match="names of their own"):
        make_plan(tiers=tiers, curve={}, unions={"screen_l1": ["screen_l1"]})


def record_of(entry) -> dict:
    record = {"name": "three <norms>", "results": {}, "attacks": {}, "evaluation": {"toy": copy.deepcopy(entry)}}
    return json.loads(json.dumps(record))


def test_report_and_leaderboard_show_each_threat_and_the_union(found, tmp_path):
    record = record_of(found[0])
    check_record(record, "here")
    page = render_html(build_report(record, tmp_path))
    assert "Several threat models" in page and "screen_union" in page and "l1 270/255" in page
    board = render_html(build_leaderboard([(tmp_path / "robustness.json", record)]))
    results = {**found[0]["tiers"], **found[0]["unions"]}
    for name, values in results.items():
        assert f"{name} %" in board and f"{values['robust']['accuracy']:.1f}" in board
    assert "linf 2.5/255, l2 30/255, l1 270/255" in board
    record["evaluation"]["toy"]["unions"]["screen_union"]["robust"] = 3
    with pytest.raises(UserError, match="unions.screen_union.robust"):
        check_record(record, "here")


def test_union_is_compared_where_all_threat_models_are_the_same(found, tmp_path):
    entry, flags, _ = found
    first = Evaluated(tmp_path, entry, flags)
    assert compare(first, first, "screen_union").difference == 0
    other = copy.deepcopy(entry)
    other["tiers"]["screen_l1"]["eps"] = 100.0
    with pytest.raises(NotComparable, match="l1 100/255"):
        compare(first, Evaluated(tmp_path, other, flags), "screen_union")
    compare(first, Evaluated(tmp_path, other, flags), "screen_l2")


def test_a_black_box_that_wins_under_one_norm_is_a_finding():
    entry = record_fixture.evaluation()
    standard = entry["tiers"].pop("standard")
    entry["tiers"] |= {"standard_linf": standard, "standard_l1": copy.deepcopy(standard)}
    for row in entry["tiers"]["standard_l1"]["attacks"]:
        row["name"] += "_l1"
    black_box = entry["tiers"]["standard_l1"]["attacks"][-1]
    checks = {check.id: check for check in record_checks(entry)}
    assert checks["C13"].status == "pass"
    black_box["accuracy_after"] -= 4.0
    finding = {check.id: check for check in record_checks(entry)}["C13"]
    assert finding.status == "fail" and black_box["name"] in finding.sentence


@pytest.mark.parametrize(("kind", "found"), [(models.Honest, False), (models.Quantised, True)])
def test_audit_finds_a_masked_gradient_under_each_threat(kind, found):
    images, plan = models.make_images(8), make_plan(tiers=threat_tiers(), curve={})
    plan = replace(plan, unions={"screen_union": [tier.name for tier in plan.tiers]})
    others = other_threats(plan, plan.tiers[0].attacks["ce_linf"])
    assert [tier.name for tier in others] == ["screen_l2", "screen_l1"]
    assert not other_threats(replace(plan, unions={}), plan.tiers[0].attacks["ce_linf"])
    settings = CheckSettings(images=8, steps=10, long_steps=20, noise_draws=10, directions=2)
    values = {"NORM": "l1", "eps": 900.0}
    attacks = {"ce_l1": attack(STEPS=10, **values), "square_l1": attack("margin", "Square", STEPS=200, **values)}
    with attack_mode(kind()) as view:
        labels = view.class_logits(images).argmax(dim=1)
        batch = [{"class_id": int(label), "image_id": row} for row, label in enumerate(labels)]
        checks = audit_threat(view, batch, images, None, Tier("screen_l1", "class", attacks), settings)
    assert all(check.sentence.startswith("screen_l1: ") for check in checks)
    failed = {check.id for check in checks if check.status == "fail"}
    wanted = {"C12", "C13", "C15", "C16"}
    assert wanted <= failed if found else not wanted & failed


def test_perturbations_of_other_norms_are_shown_by_their_largest_change(tmp_path):
    """A change of one value by 50 has an L1 norm of 50, and no picture of it is grey."""
    clean = np.full((1, 3, 8, 8), 100, dtype=np.uint8)
    attacked = clean.astype(np.float32)
    attacked[0, 0, 2, 2] += 50.0
    arrays = {"image_id": [1], "clean": clean, "attacked": attacked}
    arrays |= dict.fromkeys(["label", "clean_prediction", "attacked_prediction"], [0])
    np.savez(tmp_path / "pictures.npz", **arrays)
    pages = []
    for norm, eps in (("linf", 50.0), ("l1", 2000.0), ("linf", 200.0)):
        tiers = {"screen": {"norm": norm, "eps": eps, "attacks": []}}
        entry = {"num_images": 1, "tiers": tiers, "files": {"pictures": "pictures.npz"}}
        page = render_html(build_report({"evaluation": {"toy": entry}}, tmp_path))
        pages.append(re.findall(r'src="(data:[^"]*)"', page))
    assert pages[0] == pages[1] != pages[2] and pages[0]
