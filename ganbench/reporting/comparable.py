"""The one rule for which values may be compared, and for which results are of one run.

Everything that sets two numbers side by side asks `differences` first. A value says how good a model is only beside one
that was measured in the same way, on the same real images, with images of the same shape.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from ganbench.reporting.results import Measurement, Result

OWN_NETWORKS = ("encoder", "encoder-hidden", "discriminator")  # parts of the model: another model, another network
READING = {  # how images were read, as the origin of a set records it
    "resize": "resize", "channels": "channels", "alpha": "alpha", "drawn": "images drawn", "draw_seed": "seed of draw",
}

Anything = TypeVar("Anything")


def differences(
    a: tuple[Result, Measurement], b: tuple[Result, Measurement], names: tuple[str, str] = ("a", "b")
) -> list[str]:
    """Return in words why the values of one metric in two results may not be compared; nothing if they may.

    Two values are comparable if all of these agree:

    - protocol: the formula, its version, and what it fixes;
    - network: name, version and SHA-256; of a part of the model itself, such as its encoder, the name;
    - counts: of real images and of generated ones;
    - reference, if the metric takes real images: fingerprint, split, shape, count, resizing and draw (`_same_set`);
    - held-out images, if the metric takes these: the same;
    - the generated images' shape and preprocessing, if it takes generated images.

    Seeds, checkpoints, training, machine and versions of packages are not compared: they are what is under test.

    a, b: a result, and its measurement of the metric. names: what the sentences call them.
    """
    (one, m), (two, n) = a, b
    found = []

    def say(what: str, x: Any, y: Any) -> None:
        if x != y:
            found.append(f"{what}: {names[0]} has {_shown(x)}, {names[1]} has {_shown(y)}")

    say("protocol", m.protocol, n.protocol)
    networks = [_network(m), _network(n)]
    for key, what in (("name", "network"), ("version", "version of the network"), ("sha256", "hash of the network")):
        x, y = (network.get(key) for network in networks)
        say(what, x, y)
        if x != y:
            break  # another network has another version and hash
    say("real images", m.n_real, n.n_real)
    say("generated images", m.n_fake, n.n_fake)
    if m.n_real and n.n_real:
        for line in _same_set(one.reference, two.reference):
            say(f"reference, {line[0]}", *line[1:])
        if any(_takes_held_out(*side) for side in (a, b)):
            for line in _same_set(one.held_out, two.held_out):
                say(f"held-out images, {line[0]}", *line[1:])
    if m.n_fake and n.n_fake and one.fake and two.fake:
        say("shape of images", one.fake.get("shape"), two.fake.get("shape"))
        for key in ("resize", "channels", "alpha"):
            say(f"{READING[key]} of images", one.fake.get(key), two.fake.get(key))
    return found


def _network(m: Measurement) -> dict[str, Any]:
    network = m.extractor or {}
    return {"name": network["name"]} if network.get("name") in OWN_NETWORKS else network


def _takes_held_out(result: Result, m: Measurement) -> bool:
    """Return True if the count of real images is not that of the reference: then they may be held-out ones."""
    return m.n_real != (result.reference or {}).get("count")


def _same_set(a: dict[str, Any] | None, b: dict[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """Return in which respects two sets of real images differ: a name, and the value of each.

    Fingerprints of one kind decide: of pixels (the default), or of encoded files (`fingerprint_of` "files"). If the
    kinds differ or one is missing, kind of source, name and split decide instead. Shape, count, resizing and draw are
    compared in any case. A set that a result does not record agrees with everything.
    """
    if not a or not b:
        return []
    kinds = [s.get("fingerprint_of", "pixels") if s.get("fingerprint") else None for s in (a, b)]
    rows = [(what, a.get(key), b.get(key)) for key, what in READING.items()]
    rows += [(key, a.get(key), b.get(key)) for key in ("shape", "count")]
    if kinds[0] is None or kinds[0] != kinds[1]:
        rows.append(("images", _named(a), _named(b)))
    elif a["fingerprint"] != b["fingerprint"]:
        one, two = (f"{_named(s)} ({str(s['fingerprint'])[:8]})" for s in (a, b))
        rows.append(("images", one, two))
    return [row for row in rows if row[1] != row[2]]


def _named(origin: dict[str, Any]) -> str:
    """Return a set's name: `digits:train`."""
    name = ":".join(str(origin[key]) for key in ("name", "split") if origin.get(key))
    return name or str(origin.get("sha256", origin.get("kind", "unknown images")))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text


# --- Numbers ---


def why_no_number(m: Measurement) -> str:
    """Return why the value or the uncertainty of a measurement is no finite number; '' if both are fine.

    A measurement without a value or without an uncertainty is fine here.
    """
    if m.value is not None and not is_number(m.value):
        return f"its value is {m.value!r}"
    if m.uncertainty is not None:
        error: Any = m.uncertainty.get("value") if isinstance(m.uncertainty, dict) else m.uncertainty
        if not is_number(error) or error < 0:
            return f"its uncertainty is {error!r}"
    return ""


def is_number(value: Any) -> bool:
    """Return True for a finite float or an integer that fits into one; no text, no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


# --- Runs ---


def subject(result: Result) -> str:
    """Return what was measured, as a hash: of the checkpoint, of the generator's file, or of the images; '' if unknown.

    Two results of one subject are no two independent runs, whatever their seeds of sampling are.
    """
    fake = result.fake or {}
    return str(fake.get("checkpoint_sha256") or fake.get("sha256") or fake.get("fingerprint") or "")


def without_copies(found: Sequence[tuple[Anything, Result]]) -> tuple[list[tuple[Anything, Result]], list[str]]:
    """Return the results without copies of one run, and a line for each copy that was left out.

    found: results with what they are called, mostly paths. The first of several copies stays, in the given order.
    A copy has the same recipe, overrides, seed, subject and values. A run that was repeated with one seed and gave the
    same bits is a copy too. If the subject is unknown, the time of creation must agree; if that is unknown as well, no
    result is taken for a copy.
    """
    kept: list[tuple[Anything, Result]] = []
    first: dict[str, Anything] = {}
    lines = []
    for name, result in found:
        key = _content(result)
        if key is not None and key in first:
            lines.append(f"{name} is a copy of {first[key]}: counted once")
            continue
        if key is not None:
            first[key] = name
        kept.append((name, result))
    return kept, lines


def _content(result: Result) -> str | None:
    """Return the content of a run that no other run has, or None if too little is known of it."""
    known = subject(result) or result.created
    if not known:
        return None
    recipe = {k: v for k, v in (result.recipe or {}).items() if k != "sha256"}
    values = [(m.metric, m.n_fake, m.n_real, m.value) for m in result.measurements]
    drawn = (result.fake or {}).get("seed")
    return json.dumps([recipe, result.overrides, result.seed, known, drawn, values], sort_keys=True, default=str)
