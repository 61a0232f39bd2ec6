"""Digests of every model configuration: its start, the losses of twenty steps, and samples afterwards.

    python tests/model_digests.py DIGESTS.json [PATTERN]           # write them
    python tests/model_digests.py DIGESTS.json [PATTERN] --check   # compare with a file written before

PATTERN chooses the configurations whose name and arguments contain it. A configuration counts in the file as soon as it
is measured.

Use it before and after a change of code that must not change a number: the same seeds then give the same bits on the
same machine and torch version. Names of weights may change; their values, in any order, may not.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from ganbench import recipes
from ganbench.base import registry
from ganbench.gan import Batch, capabilities

N, STEPS = 6, 20
LARGEST = 8  # pixels of a stage of a growing model


def configurations():
    """Every model with the arguments of each recipe, in full and on the smoke budget, and with its defaults."""
    found = {}
    for path in recipes.available().values():
        recipe = recipes.read(path)
        for budget in ("full", "smoke"):
            model = recipe.at(budget).model
            found.setdefault(json.dumps([model.name, model.args], sort_keys=True), (model.name, model.args))
    for name in registry.names("models"):
        found.setdefault(json.dumps([name, {}]), (name, {}))
    return found


def digest(*tensors):
    """SHA-256 over the sorted digests of the tensors' bytes."""
    each = sorted(hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest() for t in tensors)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def batch(model, step, generator):
    channels = (shape := model.image_shape)[0]
    stages, shown = model.stages(2 * N), 0
    if stages:  # of a model that grows: one after the other, as long as the images are small
        small = [stage for stage in stages if stage.image_size <= LARGEST]
        at = step % len(small)
        shown = sum(stage.images for stage in small[:at]) + small[at].images // 2
        shape = (channels, small[at].image_size, small[at].image_size)
    x = torch.rand(2 * N, *shape, generator=generator) * 2 - 1
    u = torch.rand(4 * N, *model.image_shape, generator=generator) * 2 - 1
    labels = model.num_classes or model.classes
    y = torch.randint(labels, (2 * N,), generator=generator) if labels else None
    return Batch(x, y, step, u, shown)


def measure(name, args):
    """Start, losses and samples of one configuration, as digests."""
    torch.manual_seed(0)
    model = registry.load("models", name)(**args)
    found = {"parameters": sum(p.numel() for p in model.parameters()), "start": digest(*model.state_dict().values())}
    generator = torch.Generator().manual_seed(1)
    model.train()
    model.begin((torch.rand(600, *model.image_shape, generator=generator) * 2 - 1).split(300))
    opt = model.optimizers()
    alone = getattr(model, "pretrain_steps", 0)  # steps in which a part of the model is trained alone
    steps = [*range(5), *range(alone + 5, alone + STEPS)]
    losses = [model.training_step(batch(model, step, generator), opt) for step in steps]
    found["losses"] = hashlib.sha256(
        json.dumps([{k: v.double().item().hex() for k, v in sorted(loss.items())} for loss in losses]).encode()
    ).hexdigest()[:16]
    found["weights"] = digest(*model.state_dict().values())
    model.eval()
    y = torch.arange(N) % model.num_classes if model.num_classes else None
    with torch.inference_mode():
        images = model.sample(N, y, torch.Generator().manual_seed(2))
        found["samples"] = digest(images)
        for what in ("encode", "encoder_features", "classify", "discriminator_features"):
            if what in capabilities(model):
                try:
                    found[what] = digest(getattr(model, what)(images))
                except ValueError:  # a CVAE encodes images of given classes; some models lack it with labels
                    if what == "encode":
                        found[what] = digest(model.encode(images, y))
    return found


def main(file, pattern="", check=False):
    known = json.loads(file.read_text()) if file.exists() else {}
    wrong, chosen = 0, {key: spec for key, spec in configurations().items() if pattern in key}
    for key, (name, args) in chosen.items():
        began, found = time.monotonic(), measure(name, args)
        differs = [k for k in found if check and known.get(key, {}).get(k) != found[k]]
        wrong += bool(differs)
        print(f"{key}: {time.monotonic() - began:.1f} s {differs if differs else ''}", flush=True)
        if not check:
            known[key] = found
            file.write_text(json.dumps(known, indent=1))
    if check:
        gone = [key for key in known if pattern in key and key not in chosen]
        print(f"{len(chosen)} configurations, {wrong} differ, {len(gone)} of the file are gone {gone}")
        sys.exit(bool(wrong or gone))


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = [word for word in sys.argv[1:] if word != "--check"]
    main(Path(words[0]), *words[1:2], check="--check" in sys.argv)
