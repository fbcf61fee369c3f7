"""Classifiers from elsewhere: how each kind is read, what is said of one that cannot be evaluated, names of classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.cli.evaluate_model import parse_arguments
from part_robust.engine.export_graph import export_graph
from part_robust.engine.external import preprocessing
from part_robust.modeling.external.classes import class_indices, read_output_names
from part_robust.modeling.external.net import ExternalNet
from part_robust.modeling.external.preprocessing import known_preprocessing
from part_robust.modeling.external.read import READERS, read_model
from part_robust.modeling.external.trial import trial_images, try_model
from part_robust.utils.errors import UserError
from tests.external_models import (
    MEAN,
    STD,
    network,
    save_exported,
    save_torchscript,
    toy_images,
    trained,
    write_callables,
)
from tests.toy import SIZE, run_cfg, save_run

CPU = torch.device("cpu")


@pytest.fixture
def callables(tmp_path, monkeypatch):
    """Path of the module `external_callables`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(write_callables(tmp_path))
    sys.modules.pop("external_callables", None)


def tried(function, classes: int = 3, batch: tuple[int, int] = (1, 0), **options) -> ExternalNet:
    net = ExternalNet(function, batch=batch, **options)
    values = (torch.full((3, 1, 1), 255 * value) for value in (MEAN, STD))
    try_model(net, SIZE, *values, classes)
    return net


def tried_callable(name: str, path: str, **options) -> ExternalNet:
    found = read_model("callable", f"external_callables:{name}", path, CPU)
    return tried(found.function, **{"batch": found.batch, **options})


def saved(kind: str, folder: Path) -> tuple[str, str]:
    """Name and file of the learned network, or of random weights for a library's, as a model of each kind."""
    if kind == "torchscript":
        return "", save_torchscript(folder / "now.ts", trained())
    if kind == "exported":
        return "", save_exported(folder / "now.pt2", trained(), least=2)
    name = {"timm": "test_resnet", "torchvision": "shufflenet_v2_x0_5"}[kind]
    if kind == "timm":
        model = pytest.importorskip("timm").create_model(name, num_classes=3)
    else:
        from torchvision.models import get_model

        model = get_model(name, weights=None, num_classes=3)
    path = folder / "now.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return name, str(path)


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "callable"])
def test_each_kind_stays_in_eval_mode_and_has_a_gradient(kind, tmp_path):
    torch.manual_seed(0)
    name, path = saved(kind, tmp_path)
    found = read_model(kind, name, path, CPU)
    net = tried(found.function, batch=found.batch)
    assert net.differentiable and not net.train().training
    assert not any(module.training for module in net.modules())
    images, labels = toy_images()
    logits = net(images)
    alone = torch.cat([net(image[None]) for image in images[:3]])
    torch.testing.assert_close(alone, logits[:3], rtol=1e-4, atol=1e-4)
    if kind in ("torchscript", "exported"):
        torch.testing.assert_close(logits, trained()(images))
        assert torch.equal(logits.argmax(dim=1), labels)


def test_weights_say_the_number_of_outputs(tmp_path):
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    found = read_model("torchvision", "shufflenet_v2_x0_5", str(tmp_path / "seven.pth"), CPU)
    assert torch.equal(found.function(toy_images()[0]), model(toy_images()[0]))
    pytest.importorskip("safetensors.torch").save_file(model.state_dict(), tmp_path / "seven.safetensors")
    found = read_model("torchvision", "shufflenet_v2_x0_5", str(tmp_path / "seven.safetensors"), CPU)
    assert torch.equal(found.function(toy_images()[0]), model(toy_images()[0]))
    with pytest.raises(
        UserError, match="must hold the weights of this model, got others: .* are not in it, first conv1"
    ):
        read_model("torchvision", "resnet18", str(tmp_path / "seven.pth"), CPU)


def test_models_of_torchvision_that_change_their_input(tmp_path):
    """As torchvision builds them for weights of its own, without the classifiers that only training uses."""
    from torchvision.models import GoogLeNet

    torch.manual_seed(0)
    model = GoogLeNet(num_classes=3, aux_logits=True, transform_input=True, init_weights=False).eval()
    known = known_preprocessing("torchvision", "googlenet", "")
    pixels = 255 * torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = model((pixels / 255 - mean) / std)
    own = [torch.tensor(values).view(3, 1, 1) for values in (known.pixel_mean, known.pixel_std)]
    state = model.state_dict()
    short = {key: value for key, value in state.items() if not key.startswith("aux")}
    other = {**state, "aux1.fc2.weight": torch.zeros(1000, 1024), "aux1.fc2.bias": torch.zeros(1000)}
    for number, weights in enumerate((state, short, other)):
        torch.save(weights, tmp_path / f"{number}.pth")
        found = read_model("torchvision", "googlenet", str(tmp_path / f"{number}.pth"), CPU)
        torch.testing.assert_close(found.function((pixels - own[0]) / own[1]), expected, rtol=1e-3, atol=1e-3)


def test_a_callable_gets_the_path_of_its_weights(callables, tmp_path):
    torch.save(trained().state_dict(), tmp_path / "weights.pth")
    for name, weights in (("loaded", str(tmp_path / "weights.pth")), ("learned", callables)):
        found = read_model("callable", f"external_callables:{name}", weights, CPU)
        assert torch.equal(found.function(toy_images()[0]), trained()(toy_images()[0]))
    with pytest.raises(UserError, match="loaded must return a model, got TypeError.*missing 1 required.*no argument"):
        read_model("callable", "external_callables:loaded", callables, CPU)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("probabilities", "must return logits, got probabilities.*gradients vanish.*--probabilities"),
        ("five", "must have the 3 classes of the data set, got 5 outputs. Give --classes"),
        ("named", r"--output .* got ''; it returns a dict with features \(4, 3, 32, 32\), logits \(4, 3\)"),
        ("pair", r"--output .* it returns a tuple with 0 \(\), 1 \(4, 3\)"),
        ("in_numpy", "must return a tensor of logits .* got a ndarray"),
        ("of_the_batch", "each image by itself, got logits that change .* eval mode"),
        ("infinite", "must return finite logits"),
        ("larger", r"must take float32 images \(4, 3, 32, 32\) on cpu, got RuntimeError: mat1 .* Give --size"),
        ("pairs", "must take float32 images .*--batch the number of images"),
        ("nothing", "must return a model or a function, got None"),
        ("broken", "must return a model, got ZeroDivisionError: division by zero"),
        ("value", "must name a function of external_callables, got value"),
        ("no_such", "must name a function of external_callables, got no_such"),
    ],
)
def test_what_cannot_be_evaluated_is_said(name, words, callables):
    with pytest.raises(UserError, match=words):
        tried_callable(name, callables)


def test_what_a_flag_makes_possible(callables):
    images, labels = toy_images()
    logits = trained()(images)
    for name, output in (("named", "logits"), ("pair", "1")):
        assert torch.equal(tried_callable(name, callables, output=output)(images), logits)
    assert torch.equal(tried_callable("blue_first", callables, channels="BGR")(images), logits)
    net = tried_callable("probabilities", callables, probabilities=True)
    torch.testing.assert_close(net(images), logits.log_softmax(dim=1))
    with pytest.raises(UserError, match="--probabilities .* must go with outputs in 0..1"):
        tried_callable("learned", callables, probabilities=True)
    five = tried_callable("five", callables, class_indices=(4, 0, 2))
    assert torch.equal(five(images), five.outputs(images)[:, [4, 0, 2]])
    assert "2 of the model's 5 outputs are no class" in five.notes[0]
    with pytest.raises(UserError, match="must name the 5 outputs of the model, got output 5"):
        tried_callable("five", callables, class_indices=(5, 0, 2))


def test_the_logarithm_of_probabilities_has_the_gradient_of_the_logits():
    """Of the margin, which the softmax of a model that is sure has none of."""
    images, labels = toy_images()
    wrong = (labels + 1) % 3
    largest = trained()(images).detach().abs().max()

    def gradient(function) -> torch.Tensor:
        x = images.clone().requires_grad_(True)
        outputs = function(x)
        margin = outputs.gather(1, wrong[:, None]) - outputs.gather(1, labels[:, None])
        return torch.autograd.grad(margin.sum(), x)[0]

    def logits(x: torch.Tensor) -> torch.Tensor:
        return 20 * trained()(x) / largest

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        return logits(x).softmax(dim=1)

    expected = gradient(logits)
    torch.testing.assert_close(gradient(ExternalNet(probabilities, probabilities=True)), expected, rtol=1e-3, atol=1e-3)
    assert gradient(ExternalNet(probabilities)).abs().max() < 1e-3 * expected.abs().max()


def test_what_is_evaluated_in_part(callables):
    net = tried_callable("no_gradient", callables)
    assert not net.differentiable and "gives no gradient" in net.notes[-1]
    assert "other logits in every pass" in tried_callable("noisy", callables).notes[-1]
    one = tried_callable("one_by_one", callables)
    images, _ = toy_images()
    torch.testing.assert_close(one(images), trained()(images))
    assert "one image at a time" in one.notes[0]
    torch.testing.assert_close(tried_callable("pairs", callables, batch=(2, 2))(images[:5]), trained()(images[:5]))
    found = read_model("callable", "external_callables:half", callables, CPU)
    assert found.notes == ("weights are float16: they are evaluated in float32",)
    assert next(found.function.parameters()).dtype == torch.float32


def test_graphs_run_without_optimisation():
    """Which replaces kernels after the first passes, and rounding with them."""
    seen = []

    def function(images):
        seen.append(torch._C._get_graph_executor_optimize())
        return trained()(images)

    tried(function)
    assert seen and not any(seen) and torch._C._get_graph_executor_optimize()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Readings of exported graphs by the numbers of images they take."""
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    for batch, arguments in {(1, 1): (1,), (4, 4): (4,), (3, 512): (4, 3)}.items():
        path = save_exported(folder / "graph.pt2", trained(), *arguments)
        found[batch] = read_model("exported", "", path, CPU)
    return found


@settings(max_examples=12, deadline=None)
@given(number=st.integers(1, 9), batch=st.sampled_from([(1, 1), (4, 4), (3, 512)]))
def test_any_number_of_images_goes_through_a_graph_of_a_fixed_one(number, batch, graphs):
    found = graphs[batch]
    assert found.batch == batch
    images = toy_images()[0][:number].clone().requires_grad_(True)
    logits = tried(found.function, batch=found.batch)(images)
    expected = trained()(images)
    torch.testing.assert_close(logits, expected)
    gradients = [torch.autograd.grad(x.square().sum(), images)[0] for x in (logits, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["torchscript", "exported"])
def test_files_of_something_else(kind, tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "text.ts").write_text("not a graph")
    for name in ("weights.pth", "text.ts"):
        with pytest.raises(UserError, match=rf"--{kind} .*{name} must be a file of torch\.(jit|export)\.save"):
            read_model(kind, "", str(tmp_path / name), CPU)
    with pytest.raises(FileNotFoundError):
        read_model(kind, "", str(tmp_path / "nothing.ts"), CPU)
    with pytest.raises(UserError, match="must be the file of a model, got a folder"):
        read_model(kind, "", str(tmp_path), CPU)
    with pytest.raises(UserError, match="MODEL.WEIGHTS must be the file"):
        read_model(kind, "", "", CPU)


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_name_that_the_library_does_not_have(kind, tmp_path):
    if kind == "timm":
        pytest.importorskip("timm")
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"--{kind} must be a .*, got .?no_such"):
        known_preprocessing(kind, "no_such", "")
    with pytest.raises(UserError, match=f"--{kind} must be a model of {kind}.*no_such"):
        read_model(kind, "no_such", str(tmp_path / "weights.pth"), CPU)


def test_preprocessing_of_the_libraries():
    for name in ("googlenet", "inception_v3"):
        known = known_preprocessing("torchvision", name, "")
        assert known.pixel_mean == known.pixel_std == [127.5] * 3 and "transform_input" in known.source
    assert (known.size, known.resize) == (299, 342)
    known = known_preprocessing("torchvision", "resnet50", "")
    assert (known.size, known.resize, known.interpolation) == (224, 232, "bilinear")
    assert known.pixel_mean == pytest.approx([123.675, 116.28, 103.53])
    assert "IMAGENET1K_V2" in known.source
    pytest.importorskip("timm")
    known = known_preprocessing("timm", "resnet18.a1_in1k", "")
    assert (known.size, known.resize, known.interpolation) == (224, 235, "bicubic")
    assert known.pixel_std == pytest.approx([58.395, 57.12, 57.375])
    assert known_preprocessing("timm", "vit_tiny_patch16_224.augreg_in21k", "").pixel_mean == [127.5] * 3
    # crop_mode "squash": without a crop it is a stretch, with one it stays what it was taken for.
    stretched = known_preprocessing("timm", "convnext_tiny.in12k_ft_in1k_384", "")
    assert (stretched.size, stretched.transform, "taken as" in stretched.source) == (384, "stretch", False)
    assert known.transform == "center_crop"
    flags = ["--timm", "convnext_tiny.in12k_ft_in1k_384", "--weights", "now.pth", "--dataset", "mine"]
    for more, transform in (([], "stretch"), (["--resize", "440"], "center_crop")):
        args = parse_arguments([*flags, *more])
        assert preprocessing(args, "timm", flags[1], "now.pth").transform == transform


@pytest.mark.parametrize(
    ("how", "resize", "transform"),
    [
        ("center_crop", 0, "short side"),
        ("center_crop", SIZE + 8, "short side"),
        ("stretch", 0, "both sides"),
    ],
)
def test_geometry_of_our_own_export(how, resize, transform, toy_data, tmp_path):
    opts = ("INPUT.TEST_TRANSFORM", how, "INPUT.TEST_RESIZE", resize, "INPUT.TEST_INTERPOLATION", "bicubic")
    weights = save_run(tmp_path / "run", "resnet")[0].MODEL.WEIGHTS
    graph = export_graph(run_cfg(tmp_path, *opts, "MODEL.WEIGHTS", weights, model="resnet"), tmp_path, "torchscript")
    assert json.loads(graph.description.read_text())["resize"].startswith(transform)
    known = known_preprocessing("torchscript", "", str(graph.path))
    assert (known.transform, known.resize, known.interpolation) == (how, resize or SIZE, "bicubic")


def test_size_of_an_exported_graph(tmp_path):
    assert known_preprocessing("exported", "", save_exported(tmp_path / "now.pt2", trained())).size == SIZE
    wide = torch.export.export(trained(), (torch.zeros(2, 3, 32, 40),))
    torch.export.save(wide, str(tmp_path / "wide.pt2"))
    with pytest.raises(UserError, match="must take square images, got a model of 32 x 40 pixels"):
        known_preprocessing("exported", "", str(tmp_path / "wide.pt2"))


def test_names_of_outputs(tmp_path):
    (tmp_path / "names.txt").write_text("tench\n\nGreat  white_shark \n lamp\n")
    (tmp_path / "list.json").write_text(json.dumps(["tench", "great white shark", "lamp"]))
    index = {"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"], "2": ["n03", "lamp"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    for name in ("names.txt", "list.json", "index.json"):
        assert class_indices(read_output_names(tmp_path / name), ["Lamp", "great white shark"]) == [2, 1]
    (tmp_path / "gap.json").write_text(json.dumps({"0": "tench", "2": "lamp"}))
    with pytest.raises(UserError, match="a name for each output, 0 to 1, got the keys"):
        read_output_names(tmp_path / "gap.json")
    (tmp_path / "number.json").write_text("3")
    with pytest.raises(UserError, match="must be a list of names, got a int"):
        read_output_names(tmp_path / "number.json")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["lamp", "sign"], "got none for 1 of them: plain. The 2 outputs are lamp, sign"),
    ],
)
def test_names_that_do_not_fit(outputs, words):
    with pytest.raises(UserError, match=words):
        class_indices(outputs, ["lamp", "plain", "sign"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True), min_size=2, max_size=4), st.data())
def test_a_class_of_several_outputs_is_their_union(groups, data):
    """Its softmax is the sum of theirs among the outputs that are used, and so is the gradient."""
    used = [output for group in groups for output in group]
    groups = [group for group in groups if all(used.count(output) == 1 for output in group)] or [[0, 3], [1]]
    entries = [group[0] if len(group) == 1 and data.draw(st.booleans()) else group for group in groups]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    outputs = (8 * torch.randn(3, 9, dtype=torch.float64)).requires_grad_(True)
    net = ExternalNet(lambda images: outputs, class_indices=entries)
    logits = net(torch.zeros(3, 3, 2, 2))
    among = sorted(output for group in groups for output in group)
    shares = outputs[:, among].softmax(dim=1)
    expected = torch.stack([shares[:, [among.index(k) for k in group]].sum(dim=1) for group in groups], dim=1)
    torch.testing.assert_close(logits.softmax(dim=1), expected)
    weights = torch.randn(len(groups), dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), outputs)[0] for x in (logits.log_softmax(1), expected.log())]
    torch.testing.assert_close(*gradients)
    for number, group in enumerate(groups):
        if len(group) == 1:
            assert torch.equal(logits[:, number], outputs[:, group[0]]), "bit for bit"


def test_names_that_several_outputs_share(callables):
    outputs = ["Dog", "lamp", "dog", "sign", "cat"]
    indices = class_indices(outputs, ["sign", "dog", "lamp"])
    assert indices == [3, [0, 2], 1]
    net = tried_callable("five", callables, class_indices=indices)
    assert "1 of the model's 5 outputs" in net.notes[0] and "classes with several outputs: 1, up to 2" in net.notes[1]
    with pytest.raises(UserError, match="must name the 5 outputs of the model, got output 6"):
        tried_callable("five", callables, class_indices=[3, [0, 6], 1])
    summed = net.outputs(toy_images()[0]).softmax(dim=1)
    shares = torch.stack([summed[:, 3], summed[:, 0] + summed[:, 2], summed[:, 1]], dim=1)
    torch.testing.assert_close(net(toy_images()[0]).softmax(dim=1), shares / shares.sum(dim=1, keepdim=True))
    # Probabilities of outputs add up, too.
    probabilities = ExternalNet(lambda x: net.outputs(x).softmax(dim=1), probabilities=True, class_indices=indices)
    torch.testing.assert_close(probabilities(toy_images()[0]).exp(), shares)


def test_images_of_the_trial_are_pictures_of_the_range():
    images = trial_images(SIZE)
    assert images.shape == (4, 3, SIZE, SIZE) and 0 <= images.min() < 50 and 200 < images.max() <= 255
    assert (images[0] - images[1]).abs().mean() > 20
