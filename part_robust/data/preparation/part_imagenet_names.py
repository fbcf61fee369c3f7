"""The documented names of PartImageNet: parts, super-categories and the 158 ImageNet classes in them.

Part names are always read from the json; this table tells which super-category a file name belongs to, and what to
compare the json with. Source: the published jsons and class lists as described in facebookresearch/VLPart and
TACJu/PartImageNet.
"""

from __future__ import annotations

# Parts in the order of the json's category ids 0..39. "Tier" is the data set's spelling.
PARTS: dict[str, tuple[str, ...]] = {
    "Quadruped": ("Head", "Body", "Foot", "Tail"),
    "Biped": ("Head", "Body", "Hand", "Foot", "Tail"),
    "Fish": ("Head", "Body", "Fin", "Tail"),
    "Bird": ("Head", "Body", "Wing", "Foot", "Tail"),
    "Snake": ("Head", "Body"),
    "Reptile": ("Head", "Body", "Foot", "Tail"),
    "Car": ("Body", "Tier", "Side Mirror"),
    "Bicycle": ("Body", "Head", "Seat", "Tier"),
    "Boat": ("Body", "Sail"),
    "Aeroplane": ("Head", "Body", "Engine", "Wing", "Tail"),
    "Bottle": ("Mouth", "Body"),
}

# Images and ImageNet classes of each official (out-of-distribution) split.
OOD_IMAGES = {"train": 16_540, "val": 2_957, "test": 4_598}
OOD_CLASSES = {"train": 109, "val": 19, "test": 30}

# wnid=name of the ImageNet classes, under their super-category.
_CLASS_TABLE = """
[Quadruped]
n02085782=Japanese_spaniel n02089867=Walker_hound n02090379=redbone n02091831=Saluki n02092339=Weimaraner
n02096177=cairn n02096585=Boston_bull n02097474=Tibetan_terrier n02098105=soft-coated_wheaten_terrier
n02099601=golden_retriever n02100583=vizsla n02101006=Gordon_setter n02101388=Brittany_spaniel
n02102040=English_springer n02102973=Irish_water_spaniel n02109525=Saint_Bernard n02109961=Eskimo_dog n02112137=chow
n02114367=timber_wolf n02120079=Arctic_fox n02124075=Egyptian_cat n02125311=cougar n02128385=leopard n02129604=tiger
n02130308=cheetah n02132136=brown_bear n02133161=American_black_bear n02134084=ice_bear n02134418=sloth_bear
n02356798=fox_squirrel n02397096=warthog n02403003=ox n02408429=water_buffalo n02412080=ram n02415577=bighorn
n02417914=ibex n02422106=hartebeest n02422699=impala n02423022=gazelle n02437312=Arabian_camel n02441942=weasel
n02442845=mink n02443114=polecat n02444819=otter n02447366=badger n02510455=giant_panda
[Biped]
n02480495=orangutan n02480855=gorilla n02481823=chimpanzee n02483362=gibbon n02483708=siamang n02484975=guenon
n02486261=patas n02486410=baboon n02487347=macaque n02488702=colobus n02489166=proboscis_monkey n02490219=marmoset
n02492035=capuchin n02492660=howler_monkey n02493509=titi n02493793=spider_monkey n02494079=squirrel_monkey
[Fish]
n01440764=tench n01443537=goldfish n01484850=great_white_shark n01491361=tiger_shark n01494475=hammerhead
n02071294=killer_whale n02514041=barracouta n02536864=coho n02607072=anemone_fish n02655020=puffer
[Bird]
n01608432=kite n01614925=bald_eagle n01824575=coucal n01828970=bee_eater n01843065=jacamar n01855672=goose
n02002724=black_stork n02006656=spoonbill n02009229=little_blue_heron n02009912=American_egret
n02017213=European_gallinule n02025239=ruddy_turnstone n02033041=dowitcher n02058221=albatross
[Snake]
n01728572=thunder_snake n01728920=ringneck_snake n01729322=hognose_snake n01729977=green_snake n01734418=king_snake
n01735189=garter_snake n01739381=vine_snake n01740131=night_snake n01742172=boa_constrictor n01744401=rock_python
n01748264=Indian_cobra n01749939=green_mamba n01753488=horned_viper n01755581=diamondback n01756291=sidewinder
[Reptile]
n01630670=common_newt n01632458=spotted_salamander n01641577=bullfrog n01644373=tree_frog n01644900=tailed_frog
n01664065=loggerhead n01665541=leatherback_turtle n01667114=mud_turtle n01667778=terrapin n01669191=box_turtle
n01685808=whiptail n01687978=agama n01688243=frilled_lizard n01689811=alligator_lizard n01692333=Gila_monster
n01693334=green_lizard n01694178=African_chameleon n01695060=Komodo_dragon n01697457=African_crocodile
n01698640=American_alligator
[Car]
n02701002=ambulance n02814533=beach_wagon n02930766=cab n03100240=convertible n03417042=garbage_truck
n03444034=go-kart n03445924=golfcart n03594945=jeep n03670208=limousine n03769881=minibus n03770679=minivan
n03977966=police_van n04037443=racer n04065272=recreational_vehicle n04146614=school_bus n04252225=snowplow
n04285008=sports_car n04465501=tractor n04487081=trolleybus
[Bicycle]
n02835271=bicycle-built-for-two n03785016=moped n03791053=motor_scooter n03792782=mountain_bike n04482393=tricycle
n04509417=unicycle
[Boat]
n03947888=pirate n04147183=schooner n04483307=trimaran n04612504=yawl
[Aeroplane]
n02690373=airliner n04552348=warplane
[Bottle]
n02823428=beer_bottle n03937543=pill_bottle n03983396=pop_bottle n04557648=water_bottle n04591713=wine_bottle
"""


def _classes() -> dict[str, tuple[str, str]]:
    found = {}
    group = ""
    for word in _CLASS_TABLE.split():
        if word.startswith("["):
            group = word.strip("[]")
        else:
            wnid, name = word.split("=")
            found[wnid] = (name, group)
    return found


# wnid: (name, super-category), 158 of them.
IMAGENET_CLASSES = _classes()
