"""Names and counts in PACO's documentation, to compare a user's files with.

Nothing here decides a label: classes and parts are always read from the files. Source: docs/PACO_DATASET.md of
facebookresearch/paco; the counts of the thesis are from EECS-2023-153, section 3.2.
"""

from __future__ import annotations

# Ids at which the part categories of the released files begin; object categories lie below.
FIRST_PART_ID = 2000

# file: (images, object boxes, part masks)
PUBLIC_COUNTS = {
    ("lvis", "train"): (45_790, 217_117, 395_071),
    ("lvis", "val"): (2_410, 10_794, 20_945),
    ("lvis", "test"): (9_443, 45_861, 86_041),
    ("ego4d", "train"): (15_667, 34_835, 81_528),
    ("ego4d", "val"): (825, 1_816, 4_240),
    ("ego4d", "test"): (9_892, 21_708, 53_580),
}

THESIS_COUNTS = {
    "images": 74_135,
    "objects": 310_603,
    "kept": 123_315,
    "kept_without_parts": 19_030,
    "part_classes": 454,
    "train": 98_652,
    "val": 12_331,
    "test": 12_331,
}
# Part classes that no object of at least 1 % of its image has, so the thesis's label space lacks them.
THESIS_ABSENT_PARTS = ("drum_(musical_instrument):cover", "tray:inner_wall")
CLASSES_WITHOUT_PARTS = ("ball", "napkin")

# sha256 of the annotation archives and what is known about each.
ARCHIVES = {
    "paco_lvis_v1.zip": {
        "02ac4edb22c251e07853e6231d69aec3fad0a180f03de2f8c880650322debc80": "current",
        "a45df077f8930ac5a5061ed4950ce6b8c41394eb519bdbfa816c0b24b964ec77": "old (13 to 23 February 2023, withdrawn)",
    },
    "paco_ego4d_v1.zip": {
        "9a2de524dd64ad8f807f0d1ad2e96de590b9fb222e55192ccfdd7b7b09b89252": "current",
        "4d01ab82bca30a9f5fec14d708f5fd13a5ce20ec750f4f888c9433da128c52b1": "old (9 to 23 February 2023)",
        "5be2b35ce32f1b76ffafa54a075dd660baa1816d446736ad5a23897848719515": "old (parts of the test file withheld)",
    },
}

# id, object, its parts. The spelling is the data set's.
_OBJECT_TABLE = """
23 trash_can body bottom hole inner_body label lid pedal rim wheel
35 handbag base body bottom handle inner_body rim zip
41 ball
61 basket base bottom cover handle inner_side rim side
88 belt bar buckle end_tip frame hole loop prong strap
90 bench arm back leg seat stretcher table_top
94 bicycle basket down_tube fork gear handlebar head_tube pedal saddle seat_stay seat_tube stem top_tube wheel
112 blender base blade cable cover cup food_cup handle inner_body seal_ring spout switch vapour_cover
127 book cover page
133 bottle base body bottom cap capsule closure handle heel inner_body label neck punt ring shoulder sipper spout top
139 bowl base body bottom inner_body rim
143 box bottom inner_side lid side
156 broom brush brush_cap handle lower_bristles ring shaft
160 bucket base body bottom cover handle inner_body loop rim
184 calculator body key
192 can base body bottom inner_body lid pull_tab rim text
207 car_(automobile) antenna bumper fender grille handle headlight hood logo mirror rim roof runningboard seat sign
    splashboard steeringwheel taillight tank trunk turnsignal wheel window windowpane windshield wiper
220 carton bottom cap inner_side lid side tapering_top text top
230 cellular_telephone back_cover bezel button screen
232 chair apron arm back base leg rail seat skirt spindle stile stretcher swivel wheel
271 clock base cable case decoration finial hand pediment
324 crate bottom handle inner_side lid side
344 cup base handle inner_body rim
378 dog body ear eye foot head leg neck nose tail teeth
396 drill body handle
399 drum_(musical_instrument) base body cover head inner_body loop lug rim
409 earphone cable ear_pads headband housing slider
429 fan base blade bracket canopy fan_box light logo motor pedestal_column rod string
498 glass_(drink_container) base body bottom inner_body rim
521 guitar back body bridge fingerboard headstock hole key pickguard side string
530 hammer face grip handle head
544 hat inner_side logo pom_pom rim strap visor
556 helmet face_shield inner_side logo rim strap visor
591 jar base body bottom cover handle inner_body lid rim sticker text
604 kettle base body cable handle inner_body lid spout switch
615 knife blade handle
621 ladder foot rail step top_cap
626 lamp base bulb cable finial pipe shade shade_cap shade_inner_side switch
631 laptop_computer back base_panel cable camera keyboard logo screen touchpad
687 microwave_oven control_panel dial door_handle inner_side side time_display top turntable
694 mirror frame
705 mouse_(computer_equipment) body left_button logo right_button scroll_wheel side_button wire
708 mug base body bottom drawing handle inner_body rim text
713 napkin
719 newspaper text
751 pan_(for_cooking) base bottom handle inner_side lid rim side
781 pen barrel cap clip grip tip
782 pencil body eraser ferrule lead
804 pillow embroidery
811 pipe colied_tube nozzle nozzle_stem
818 plate base body bottom inner_wall rim
821 pliers blade handle jaw joint
881 remote_control back button logo
898 plastic_bag body handle hem inner_body text
921 scarf body fringes
923 scissors blade finger_hole handle screw
926 screwdriver handle shank tip
948 shoe backstay eyelet heel insole lace lining outsole quarter throat toe_box tongue vamp welt
973 slipper_(footwear) insole lining outsole strap toe_box vamp
979 soap base body bottom cap capsule closure handle label neck punt push_pull_cap ring shoulder sipper spout top
999 sponge rough_surface
1000 spoon bowl handle neck tip
1018 stool footrest leg seat step
1042 sweater body cuff hem neckband shoulder sleeve yoke
1050 table apron drawer inner_body leg rim shelf stretcher top wheel
1061 tape_(sticky_cloth_or_paper) roll
1072 telephone back_cover bezel button screen
1077 television_set base bottom button side top
1093 tissue_paper roll
1108 towel body border hem terry_bar
1117 tray base bottom inner_side inner_wall outer_side rim
1139 vase body foot handle mouth neck
1156 wallet flap inner_body
1161 watch buckle case dial hand lug strap window
1196 wrench handle head
"""


def _objects() -> dict[int, tuple[str, tuple[str, ...]]]:
    lines: list[str] = []
    for line in _OBJECT_TABLE.strip().splitlines():
        if line.startswith(" "):
            lines[-1] += line
        else:
            lines.append(line)
    return {int(words[0]): (words[1], tuple(words[2:])) for words in map(str.split, lines)}


# id: (object, parts), 75 of them, of which 73 have parts.
OBJECTS = _objects()


def category_differences(categories: list[dict]) -> list[str]:
    """Sentences about how a file's categories differ from the documented ones; empty when they agree."""
    found = {c["name"] for c in categories}
    known_objects = {name for name, _ in OBJECTS.values()}
    known_parts = {f"{name}:{part}" for name, parts in OBJECTS.values() for part in parts}
    sentences = []
    for kind, known in (("object", known_objects), ("part", known_parts)):
        here = {name for name in found if (":" in name) == (kind == "part")}
        for text, names in (("lacks", known - here), ("has unknown", here - known)):
            if names:
                shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
                sentences.append(f"the file {text} {len(names)} {kind} categories: {shown}")
    ids = {name: identifier for identifier, (name, _) in OBJECTS.items()}
    moved = sorted(c["name"] for c in categories if c["name"] in ids and ids[c["name"]] != c["id"])
    if moved:
        sentences.append(f"{len(moved)} object categories have other ids than documented: {', '.join(moved[:5])}")
    return sentences
