"""The contract that every reference model keeps, in each configuration that recipes train, small as in a smoke run."""

import ast
import copy
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganbench import gan, recipes
from ganbench.base import registry
from ganbench.gan import CAPABILITIES, GAN, Batch, capabilities, checkpoint
from ganbench.training.loop import drawn_on

CPU = torch.device("cpu")
N = 6
SPECS = {}  # each configuration that a recipe trains, once
for _recipe in (recipes.read(path).override({"budget": "smoke"}) for path in recipes.available().values()):
    if _recipe.model not in SPECS.values():
        SPECS[f"{_recipe.model.name} of {_recipe.name}"] = _recipe.model
SPECS |= {n: recipes.ModelSpec(n) for n in registry.names("models") if n not in {s.name for s in SPECS.values()}}


def new(spec):
    torch.manual_seed(0)
    return checkpoint.make_model(spec.name, json.loads(json.dumps(spec.args)), "test")


def copied(model_and_state):
    """A copy of a model of a module's fixture, with the random state that it left."""
    model, state = model_and_state
    torch.set_rng_state(state)
    return copy.deepcopy(model)


# Initialising a wide network and training it costs more than all that tests then look at: each configuration is
# initialised once, takes its first step once, and each test has a copy. The scope groups the tests by configuration.


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS.keys())
def spec(request):
    return request.param


@pytest.fixture(scope="module")
def start(spec):
    return new(spec), torch.get_rng_state()


@pytest.fixture(scope="module")
def first_step(start):
    """A model after one training step, the random state, and of each loss: names of networks.

    They are the networks that it is for, those whose weights it changed, and those whose gradients it touched.
    """
    model, objectives = copied(start).train(), []
    optimizers = model.optimizers()
    owner = {id(o): name for name, o in optimizers.items()}

    def other(a, b):
        return a is not b and (a is None or b is None or not torch.equal(a, b))

    def observed(*losses):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        out = gan.minimize_together(*losses)
        changed = {name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(before[name], p)}
        touched = {name.partition(".")[0] for name, p in model.named_parameters() if other(gradients[name], p.grad)}
        objectives.append(({owner[id(o)] for _, those in losses for o in those}, changed, touched))
        return out

    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(model).__module__]
        patch.setattr(module, "minimize", lambda loss, o: observed((loss, [o]))[0], raising=False)
        patch.setattr(module, "minimize_together", observed, raising=False)
        model.training_step(batch(model), optimizers)
    return model.eval(), torch.get_rng_state(), objectives


@pytest.fixture(scope="module")
def two_steps(start):
    """A model after two training steps, and their losses."""
    model = copied(start).train()
    return model, stepped(model)


def stepped(model):
    """The losses of two steps; those of a model that grows are of its last stage, after a step in each earlier one."""
    optimizers = model.optimizers()
    return [model.training_step(data, optimizers) for data in (*earlier(model), batch(model, 0), batch(model, 1))]


@pytest.fixture
def model(start):
    """A model as it is initialised."""
    return copied(start)


@pytest.fixture
def nudged(first_step):
    """A model after one training step, so that no weight is where its initialisation put it."""
    return copied(first_step[:2])


def batch(model, step=0):
    """Smooth synthetic images of the model's shape, with labels where it takes them."""
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(N, *model.image_shape, generator=generator).cumsum(3)
    x = 2 * x / x.amax((1, 2, 3), keepdim=True) - 1
    u = x.flip(3).repeat(2, 1, 1, 1)  # semi-supervised models take some of these
    step += getattr(model, "pretrain_steps", 0)  # before which a part of the model may be trained alone
    labels = model.num_classes or getattr(model, "classes", 0)  # which training may see where samples take none
    shown = sum(stage.images for stage in model.stages(N)[:-1])  # a model that grows is in its last stage
    return Batch(x, torch.arange(N) % labels if labels else None, step, u, shown)


def earlier(model):
    """A batch in the middle of each stage before the last one, of the size that a growing model has there."""
    shown = 0
    for stage in model.stages(N)[:-1]:
        data, middle = batch(model), shown + stage.images // 2
        x = nn.functional.avg_pool2d(data.x, model.image_shape[1] // stage.image_size)
        yield data._replace(x=x, shown=middle)
        shown += stage.images


def classes(model):
    return torch.arange(N) % model.num_classes if model.num_classes else None


def draw(model, seed=0, y=None):
    with torch.inference_mode():
        return model.sample(N, classes(model) if y is None else y, torch.Generator().manual_seed(seed))


# --- What it is ---


def test_it_says_its_image_shape_and_its_classes(model):
    assert isinstance(model, GAN)
    assert len(model.image_shape) == 3
    assert model.image_shape[0] in (1, 3)
    assert all(isinstance(side, int) for side in model.image_shape)
    assert isinstance(model.num_classes, int)
    assert model.num_classes >= 0
    assert model.device == CPU


def test_its_constructor_takes_named_plain_values_that_all_have_a_default(model):
    for p in list(inspect.signature(type(model)).parameters.values()):
        assert p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.KEYWORD_ONLY
        assert isinstance(p.default, int | float | str | bool | tuple | list | None), p.name


def test_one_seed_is_one_initialisation(spec, start):
    a, b = start[0].state_dict(), new(spec).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_argument_that_it_does_not_know_is_refused(spec):
    with pytest.raises(TypeError):
        registry.load("models", spec.name)(**spec.args, no_such_argument=1)


# --- Optimisers and losses ---


def test_each_optimizer_holds_the_parameters_of_the_network_it_is_named_after(model):
    seen = []
    for name, optimizer in model.optimizers().items():
        network = getattr(model, name)
        assert isinstance(network, nn.Module)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in network.parameters()}, name
        seen += held
    assert len({id(p) for p in seen}) == len(seen), "two optimisers share a parameter"
    assert {id(p) for p in seen} == {id(p) for p in model.parameters() if p.requires_grad}
    fixed = [n for n, net in model.named_children() if not any(p.requires_grad for p in net.parameters())]
    assert len(model.optimizers()) + len(fixed) >= 2


def test_two_training_steps_have_finite_losses_and_move_every_network(start, two_steps):
    model, all_losses = two_steps
    for losses in all_losses:
        assert losses
        assert {name for name in losses if not name.endswith("_loss")} == set(model.logged)
        for name, loss in losses.items():
            assert loss.shape == (), name
            assert not loss.requires_grad, name
            assert torch.isfinite(loss), name
        assert model.game is None or set(model.game) <= set(losses)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    before = start[0]
    for name in model.optimizers():
        pairs = zip(getattr(before, name).parameters(), getattr(model, name).parameters(), strict=True)
        moved = [not torch.equal(a, b) for a, b in pairs]
        assert all(moved), f"{moved.count(False)} parameters of {name} did not move"


def test_each_loss_moves_only_the_networks_that_it_is_of(first_step):
    """`minimize` and `minimize_together` name optimisers: their networks move, and no other is touched."""
    model, _, objectives = first_step
    assert objectives
    for named, changed, touched in objectives:
        assert changed == named
        assert touched == named
    assert set.union(*(named for named, _, _ in objectives)) == set(model.optimizers())


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for an accelerator: a value that is read, or a shape that depends on one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten, operation = torch.ops.aten, func.overloadpacket
        reads = (aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.unique_dim, aten.masked_select)
        indexes = operation in (aten.index, aten.index_put, aten.index_put_)
        if operation in reads or (indexes and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_training_step_makes_no_accelerator_wait(model, monkeypatch):
    # F.one_hot looks at its values on a CPU only. Optimisers are as in the training loop, as are the latents.
    monkeypatch.setattr(nn.functional, "one_hot", lambda y, k: torch.eye(k, dtype=torch.int64, device=y.device)[y])
    optimizers = model.train().optimizers()
    for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
        if "fused" in group:
            group.update(fused=True, foreach=False)
    model.training_step(batch(model), optimizers)
    monkeypatch.setattr(model, "sample_latent", drawn_on(CPU, model.sample_latent))
    data = batch(model, 1)
    with torch.device("meta"), Waits() as waits:  # what is not made on the model's own device has no values
        model.training_step(data, optimizers)
    assert waits.found == []


def test_training_is_a_function_of_seed_and_data(start, two_steps):
    again = stepped(copied(start).train())
    assert all(torch.equal(a[k], b[k]) for a, b in zip(two_steps[1], again, strict=True) for k in a)


# --- Samples ---


def test_samples_are_float32_images_of_the_shape_in_minus_one_to_one(nudged):
    x = draw(nudged)
    assert x.shape == (N, *nudged.image_shape)
    assert x.dtype == torch.float32
    assert -1 <= float(x.min()) < float(x.max()) <= 1


def test_a_generator_alone_decides_the_samples_and_the_global_state_is_left_alone(nudged):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = draw(nudged)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw(nudged), a)
    assert not torch.equal(draw(nudged, seed=1), a)


def test_samples_of_one_set_differ(nudged):
    x = draw(nudged, y=torch.zeros(N, dtype=torch.int64) if nudged.num_classes else None).flatten(1)
    assert len(x.unique(dim=0)) == N


def test_classes_are_drawn_from_the_generator_where_none_are_given(nudged):
    with torch.inference_mode():
        a, b = (nudged.sample(N, None, torch.Generator().manual_seed(0)) for _ in range(2))
    assert a.shape == (N, *nudged.image_shape)
    assert torch.equal(a, b)


def test_the_class_matters_where_there_are_classes_and_only_there(nudged):
    ones, twos = (draw(nudged, y=torch.full((N,), c)) for c in (1, 2))
    assert torch.equal(ones, twos) == (not nudged.num_classes)


def test_a_sample_does_not_depend_on_its_neighbours(nudged, monkeypatch):
    z = nudged.sample_latent(N, torch.Generator().manual_seed(0))
    y = classes(nudged)

    def of(rows):
        monkeypatch.setattr(nudged, "sample_latent", lambda n, generator=None: z[rows])
        with torch.inference_mode():
            return nudged.sample(len(z[rows]), None if y is None else y[rows], torch.Generator().manual_seed(0))

    together = of(slice(None))
    apart = torch.cat([of(slice(0, 2)), of(slice(2, 3)), of(slice(3, None))])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 1e-3  # neighbours are told apart at this tolerance


def test_latents_are_drawn_on_the_cpu_from_the_generator_alone(model):
    state = torch.get_rng_state()
    a, b, c = (model.sample_latent(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert a.device == CPU
    assert len(a) == 5
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_sample_is_the_image_of_a_latent(nudged):
    """So that latents can be drawn apart from the network; both ways leave the generator in the same state."""
    if "generate" not in capabilities(nudged):
        return
    y = classes(nudged)
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    with torch.inference_mode():
        for _ in range(2):
            expected = nudged.sample(N, y, a)
            assert torch.equal(nudged.generate(nudged.sample_latent(N, b), y), expected)
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))


def test_sampling_leaves_the_weights_and_the_moments_alone(nudged):
    before = {k: v.clone() for k, v in nudged.state_dict().items()}
    draw(nudged)
    assert all(torch.equal(v, before[k]) for k, v in nudged.state_dict().items())


def test_a_checkpoint_brings_the_same_model_back(spec, nudged, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, nudged.state_dict(), checkpoint.Checkpoint(spec.name, spec.args, steps=1))
    back, meta = checkpoint.load(path, spec.name)
    assert (meta.model, meta.args, meta.steps) == (spec.name, spec.args, 1)
    assert back.state_dict().keys() == nudged.state_dict().keys()
    assert all(torch.equal(v, nudged.state_dict()[k]) for k, v in back.state_dict().items())
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())
    assert torch.equal(draw(back), draw(nudged))


# --- Capabilities ---


def test_what_it_says_it_can_do_it_can_do_or_says_why_not(nudged):
    x, can = batch(nudged).x, capabilities(nudged)
    assert {"sample", "sample_latent"} <= set(can) <= set(CAPABILITIES)
    with torch.inference_mode():
        for name, shape in {
            "classify": (N, nudged.num_classes or None), "discriminator_features": (N, None), "encode": (N, None),
            "encoder_features": (N, None),
            "reconstruct": (N, *nudged.image_shape),
        }.items():
            if name not in can:
                assert not hasattr(nudged, name)
                continue
            try:
                out = getattr(nudged, name)(x)
            except ValueError as why:  # not in this configuration
                reason, out = str(why), None
            if out is None:
                assert len(reason) > 20, f"{name} does not say why not"
                continue
            assert len(out.shape) == len(shape)
            assert all(a == b or b is None for a, b in zip(out.shape, shape, strict=True)), name
            assert torch.isfinite(out).all()


def test_its_codes_are_parts_of_its_latent_that_it_reads_in_its_images(nudged):
    if "codes" not in capabilities(nudged):
        assert "code_log_likelihood" not in capabilities(nudged)
        return
    z = nudged.sample_latent(N, torch.Generator().manual_seed(0))
    seen = set()
    for code in nudged.codes():
        columns = set(range(z.shape[1])[code.columns])
        assert len(columns) == max(code.values, 1)
        assert not columns & seen
        seen |= columns
        part = z[:, code.columns]
        assert torch.equal(part.sum(1), torch.ones(N)) if code.values else float(part.abs().max()) <= 1
    with torch.inference_mode():
        log_q = nudged.code_log_likelihood(nudged.generate(z, classes(nudged)), z)
    assert log_q.shape == (N, len(nudged.codes()))
    assert torch.isfinite(log_q).all()
    assert all(code.values == 0 or float(q.max()) <= 0 for code, q in zip(nudged.codes(), log_q.T, strict=True))


def test_its_latent_spaces_lie_between_z_and_the_image(nudged):
    z, y, can = nudged.sample_latent(N, torch.Generator().manual_seed(0)), classes(nudged), capabilities(nudged)
    with torch.inference_mode():
        if "latent_spaces" in can:
            spaces = nudged.latent_spaces()
            assert [space.name for space in spaces][:1] == ["z"]
            assert len({space.name for space in spaces}) == len(spaces)
            assert torch.equal(spaces[0].of(z, y), z)
            images = [space.generate(space.of(z, y), y) for space in spaces]
            assert all(torch.equal(x, images[0]) for x in images)
            assert torch.equal(images[0], spaces[0].generate(z, y))  # no noise of its own
        if "generate_truncated" in can:
            torch.testing.assert_close(nudged.generate_truncated(z, 1.0), nudged.generate(z, y), atol=1e-5, rtol=1e-4)
        if "generate_mixed" in can and getattr(nudged, "styled", True):
            assert torch.equal(nudged.generate_mixed(z, z, 0, 2), nudged.generate(z, y))
        if "scales" in can:
            scales = nudged.scales(z)
            assert torch.equal(scales[-1], nudged.generate(z, y))
            assert [len(x) for x in scales] == [N] * len(scales)
            assert [x.shape[2] for x in scales] == sorted({x.shape[2] for x in scales})
            assert all(-1 <= float(x.min()) <= float(x.max()) <= 1 for x in scales)


# --- The file ---


@pytest.fixture(params=registry.names("models"))
def source(request):
    return Path(inspect.getfile(registry.load("models", request.param)))


def test_its_docstring_names_the_paper_and_numbers_the_deviations(source):
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    title = re.search(r'^"([^"]{20,})",\n(.+)$', doc, re.MULTILINE)
    assert title, "no title in quotation marks with the authors below it"
    authors = title[2]
    assert re.match(r"[A-Z][\w.-]+ ([A-Z][\w.-]+ ?)+[,.]", authors), authors
    assert re.search(r"\b(19|20)\d\d\b", doc), "no year"
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", doc), "no arXiv id"
    assert re.search(r"[Oo]fficial code", doc), "no word about official code"
    deviations = re.search(r"Deviations from the paper.*?:\n(.*)", doc, re.DOTALL)
    assert deviations, "no deviations"
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", deviations[1], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_each_deviation_that_the_code_mentions_is_in_the_docstring(source):
    text = source.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text)) or ""
    known = {int(n) for n in re.findall(r"^(\d+)\. ", doc, re.MULTILINE)}
    assert {int(n) for n in re.findall(r"# .*?deviation (\d+)", text)} <= known


def test_it_imports_torch_torchvision_the_layers_and_the_contract_alone(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {"." * n.level + (n.module or "") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    allowed = {"torch", "torchvision", *sys.stdlib_module_names}
    ours = {"ganbench.gan", "reference_models.layers"}
    assert not {name for name in imported - ours if name.partition(".")[0] not in allowed}
    assert not any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "__import__" for node in ast.walk(tree)
    )


def test_every_class_and_public_function_of_the_file_is_documented_or_plain(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node), node.name


def test_every_bundled_file_is_registered():
    folder = Path(inspect.getfile(registry.load("models", "dcgan"))).parent
    registered = {Path(inspect.getfile(registry.load("models", n))) for n in registry.names("models")}
    files = {p for p in folder.glob("*.py") if p.name not in ("__init__.py", "layers.py")}
    assert files <= registered


def test_there_is_a_recipe_for_every_bundled_model():
    trained = {r.model.name for r in map(recipes.read, recipes.available().values())}
    assert {
        n for n in registry.names("models") if registry.entries("models")[n].value.startswith("reference_models.")
    } <= trained
