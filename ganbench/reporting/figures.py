"""Pictures of what a result holds; every number in them comes from its file. Needs the extra `ganbench[figures]`."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ganbench.base import schema
from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path
from ganbench.reporting.results import Measurement, Result

ACGAN = ("discriminability", "gaining_classes", "diverse_classes", "accuracy_diversity_correlation")
TRUNCATION = ("truncation_fd", "truncation_score")


Pairs = list[tuple[float, float]]


def _per_class(*keys: str) -> schema.Table:
    """The kind of values by class: these keys, and others, each a table of numbers by class."""
    classes = schema.Table(others=schema.Number())
    return schema.Table(dict.fromkeys(keys, classes), others=classes)


# The details that the panels show, by stem. The metrics write more.
DETAILS = {
    "gaining_classes": schema.Table({"per_class": _per_class("native")}, others=schema.Plain()),
    "diverse_classes": schema.Table(
        {"per_class": _per_class("real", "fake"), "threshold": schema.Number()}, others=schema.Plain()
    ),
    "accuracy_diversity_correlation": schema.Table(
        {"per_class": _per_class("accuracy", "ms_ssim")}, others=schema.Plain()
    ),
}


@dataclass(frozen=True)
class Panels:
    """The four panels of AC-GAN's analysis. By class: value on the x axis and on the y axis, in one order.

    resolutions: 'native' or a side in pixels, ascending; accuracy and real: value and standard error at each, real
    empty where real images were not measured. reduced: the side that `gain` compares with; gain: accuracy at that side
    and at native size. alike: MS-SSIM of real and of generated images; the largest real one is `threshold`.
    against: accuracy and MS-SSIM. share_gaining, share_diverse, r: (value, standard error).
    reasons: by stem, why a panel has no value; it is empty then.
    """

    resolutions: list[str]
    accuracy: Pairs
    real: Pairs
    reduced: str = ""
    gain: Pairs = field(default_factory=list)
    share_gaining: tuple[float, float] = (0.0, 0.0)
    alike: Pairs = field(default_factory=list)
    threshold: float = 0.0
    share_diverse: tuple[float, float] = (0.0, 0.0)
    against: Pairs = field(default_factory=list)
    r: tuple[float, float] = (0.0, 0.0)
    reasons: dict[str, str] = field(default_factory=dict)


def acgan_panels(result: Result, name: str = "the result") -> Panels:
    """The values of the four panels, from a result with all of `ACGAN`.

    name: the result's file, for messages. Raises UserError for a stem that was not asked for, where there is not even a
    discriminability, and for details that are not those of the metric.
    """
    found = {stem: _of(result.measurements, stem) for stem in ACGAN}
    for stem, measurements in found.items():
        if not measurements:
            raise UserError(f"{name} has no '{stem}': evaluate with --metrics {','.join(ACGAN)}.")
    reasons = {stem: m[0].reason for stem, m in found.items() if m[0].value is None}
    if ACGAN[0] in reasons:
        raise UserError(f"{name} has no value of '{ACGAN[0]}': {reasons[ACGAN[0]]}.")
    for stem, kind in DETAILS.items():
        first = found[stem][0]
        if first.value is not None:
            at = f"measurements[{result.measurements.index(first)}].details"
            whose = f"{name} is damaged or was edited: '{at}' of {stem}"
            schema.require(kind, first.details, whose, "evaluate again")
    accuracy = _by_resolution(found["discriminability"])
    real = _by_resolution(_of(result.real, "discriminability"))
    order = [*sorted((r for r in accuracy if r != "native"), key=int), "native"]
    panels = Panels(order, [accuracy[r] for r in order], [real[r] for r in order] if set(order) <= set(real) else [],
                    reasons=reasons)
    gain, alike, against = (found[stem][0] for stem in ACGAN[1:])
    if gain.value is not None:
        reduced = next((key for key in gain.details["per_class"] if re.fullmatch("@?[0-9]{1,9}", key)), "")
        if not reduced:
            raise UserError(f"{name} has accuracies of classes at native size only: evaluate again.")
        panels = replace(panels, reduced=reduced.removeprefix("@"), gain=_pairs(gain, reduced, "native"),
                         share_gaining=_value(gain))
    if alike.value is not None:
        panels = replace(panels, alike=_pairs(alike, "real", "fake"), threshold=alike.details["threshold"],
                         share_diverse=_value(alike))
    if against.value is not None:
        panels = replace(panels, against=_pairs(against, "accuracy", "ms_ssim"), r=_value(against))
    return panels


def acgan_figures(result: Result, out: Path, name: str = "the result") -> None:
    """Draw the figures of Odena et al. (2017, Figures 3, 5 and 6 and accuracy by resolution) as four panels: one PNG.

    A panel whose metric has no value says why. Raises UserError as `acgan_panels` does, where matplotlib is missing,
    and where `out` cannot be written.
    """
    panels = acgan_panels(result, name)
    figure = _figure(10, 8)
    by_resolution, *others = figure.subplots(2, 2).flat
    gain, alike, against = others

    for values, label, style in ((panels.accuracy, "generated", "o-"), (panels.real, "real", "s--")):
        if values:
            heights, errors = zip(*values, strict=True)
            by_resolution.errorbar(panels.resolutions, heights, errors, fmt=style, capsize=3, label=label)
    by_resolution.set(xlabel="resolution (pixels a side)", ylabel="accuracy", ylim=(0, None), title="Discriminability")
    by_resolution.legend()

    if panels.gain:
        gain.scatter(*zip(*panels.gain, strict=True), s=12, alpha=0.5)
        gain.axline((0, 0), slope=1, color="grey", linewidth=1)
    gain.set(xlabel=f"accuracy of a class at {panels.reduced} pixels", ylabel="at native size",
             title=f"{_percent(panels.share_gaining)} of classes gain")

    if panels.alike:
        alike.scatter(*zip(*panels.alike, strict=True), s=12, alpha=0.5)
        alike.axhline(panels.threshold, color="grey", linewidth=1)
    alike.set(xlabel="MS-SSIM of a class, real", ylabel="generated",
              title=f"{_percent(panels.share_diverse)} of classes below {panels.threshold:.3f}")

    if panels.against:
        against.scatter(*zip(*panels.against, strict=True), s=12, alpha=0.5)
    against.set(xlabel="accuracy of a class", ylabel="MS-SSIM, generated",
                title=f"r = {panels.r[0]:.2f} ± {panels.r[1]:.2f}")

    for axes, stem in zip(others, ACGAN[1:], strict=True):
        if stem in panels.reasons:
            axes.set(title=stem, xticks=[], yticks=[])
            axes.text(0.5, 0.5, f"not measured:\n{panels.reasons[stem]}", ha="center", va="center", wrap=True,
                      parse_math=False, transform=axes.transAxes)

    _save(figure, out)


def held(result: Result) -> str:
    """Return which figures a result holds values for: 'acgan', or 'truncation' if it has none of AC-GAN's metrics."""
    stems = {m.protocol.partition("/")[0] for m in result.measurements}
    return "truncation" if stems & {*TRUNCATION} and not stems & {*ACGAN} else "acgan"


@dataclass(frozen=True)
class Curve:
    """One metric of truncated samples: (value, standard error) by threshold, and without truncation.

    metric: its name. points: by threshold, ascending. untruncated: without truncation.
    """

    metric: str
    points: dict[float, tuple[float, float]]
    untruncated: tuple[float, float]


def truncation_curves(result: Result, name: str = "the result") -> list[Curve]:
    """The truncation curves that a result holds: of the Fréchet distance, of the score, or of both in this order.

    name: the result's file, for messages. Raises UserError if neither was asked for or neither has a value.
    """
    found = {stem: _of(result.measurements, stem) for stem in TRUNCATION}
    if not any(found.values()):
        raise UserError(f"{name} has no '{TRUNCATION[0]}': evaluate with --metrics {','.join(TRUNCATION)}.")
    curves = []
    for m in found.values():
        if m and m[0].value is not None:
            values = [(_threshold(x, m[0].metric), _value(x)) for x in m[1:] if x.value is not None]
            points = dict(sorted((t, v) for t, v in values if t is not None))
            curves.append(Curve(m[0].metric, points, _value(m[0])))
    if not curves:
        stem, reason = next((stem, m[0].reason) for stem, m in found.items() if m)
        raise UserError(f"{name} has no value of '{stem}': {reason}.")
    return curves


def _threshold(m: Measurement, untruncated: str) -> float | None:
    """The threshold that a measurement is named after, as in 'truncation_fd_X@0.5'; None for any other name."""
    found = re.fullmatch(r"@([0-9]{1,6}(\.[0-9]{1,6})?)", m.metric.removeprefix(untruncated))
    return float(found[1]) if found else None


def truncation_figures(result: Result, out: Path, name: str = "the result") -> None:
    """Draw the truncation curve (Brock et al., 2019, Section 3.1): one PNG.

    Each metric by threshold, with the untruncated value as a line; if the result has both, also one against the other,
    each point with its threshold. Raises UserError as `truncation_curves` does, where matplotlib is missing, and where
    `out` cannot be written.
    """
    curves = truncation_curves(result, name)
    panels = len(curves) + (len(curves) == 2)
    figure = _figure(5 * panels, 4)
    axes = list(figure.subplots(1, panels, squeeze=False).flat)
    for ax, curve in zip(axes, curves, strict=False):
        if curve.points:
            heights, errors = zip(*curve.points.values(), strict=True)
            ax.errorbar(list(curve.points), heights, errors, fmt="o-", capsize=3, label="truncated")
        ax.axhline(curve.untruncated[0], color="grey", linewidth=1, label="not truncated")
        ax.set(xlabel="threshold of |z|")
        ax.set_ylabel(curve.metric, parse_math=False)
        ax.legend()
    if len(curves) == 2:
        ax, (distance, score) = axes[-1], curves
        both = [t for t in distance.points if t in score.points]
        marks = [(score.points[t][0], distance.points[t][0], f"{t:g}") for t in both]
        marks.append((score.untruncated[0], distance.untruncated[0], "none"))
        ax.plot([x for x, _, _ in marks], [y for _, y, _ in marks], "o-")
        for x, y, text in marks:
            ax.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points")
        ax.set(title="thresholds")
        ax.set_xlabel(score.metric, parse_math=False)
        ax.set_ylabel(distance.metric, parse_math=False)
    _save(figure, out)


def shares(values: dict[str, list[float]], bins: int) -> tuple[list[float], dict[str, list[float]]]:
    """Return the edges of equal bins over all values, and the share of each set's values in each bin.

    A value on an inner edge counts in the bin above it.

    >>> shares({"a": [0.0, 1.0, 4.0], "b": [3.0]}, bins=2)
    ([0.0, 2.0, 4.0], {'a': [0.6666666666666666, 0.3333333333333333], 'b': [0.0, 1.0]})
    """
    every = [v for own in values.values() for v in own]
    low, high = min(every), max(every)
    width = (high - low) / bins or 1.0
    found = {}
    for name, own in values.items():
        counts = [0] * bins
        for v in own:
            counts[min(int((v - low) / width), bins - 1)] += 1
        found[name] = [c / len(own) for c in counts]
    return [low + i * width for i in range(bins + 1)], found


def histogram(values: dict[str, list[float]], out: Path, x: str, y: str, bins: int = 20) -> None:
    """Draw histograms of several sets of finite values over the same bins, as the shares of each set: one PNG.

    values: by the name of the set, none empty. x, y: labels of the axes. Zhao et al. (2017, Figure 3) compare the
    scores of all configurations of a search in this way. Raises UserError where matplotlib is missing, and where `out`
    cannot be written.
    """
    figure = _figure(8, 5)
    edges, heights = shares(values, bins)
    axes = figure.subplots()
    for name, height in heights.items():
        axes.stairs(height, edges, fill=True, alpha=0.4, label=f"{name} ({len(values[name])})")
    axes.set(xlabel=x, ylabel=y, ylim=(0, None))
    axes.legend()
    _save(figure, out)


def _figure(width: float, height: float) -> Any:
    """A new figure of matplotlib, in inches. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "figures are drawn by matplotlib: install it with `pip install 'ganbench[figures]'`."
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _save(figure: Any, out: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_path(out) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def _of(measurements: list[Measurement], stem: str) -> list[Measurement]:
    """All measurements of a protocol over the first extractor it was measured with, in their order."""
    own = [m for m in measurements if m.protocol.startswith(f"{stem}/")]
    return [m for m in own if m.extractor == own[0].extractor]


def _by_resolution(measurements: list[Measurement]) -> dict[str, tuple[float, float]]:
    """Value and error by 'native' (the first) and by side."""
    name = measurements[0].metric if measurements else ""
    found = {}
    for m in (m for m in measurements if m.value is not None):
        side = m.metric.removeprefix(name).removeprefix("@")
        if not side or (m.metric == f"{name}@{side}" and re.fullmatch("[0-9]{1,9}", side)):
            found[side or "native"] = _value(m)
    return found


def _value(m: Measurement) -> tuple[float, float]:
    assert m.value is not None
    return m.value, m.error or 0.0


def _pairs(m: Measurement, x: str, y: str) -> list[tuple[float, float]]:
    """Two values for each class that has both."""
    a, b = m.details["per_class"][x], m.details["per_class"][y]
    return [(a[c], b[c]) for c in a if c in b]


def _percent(share: tuple[float, float]) -> str:
    return f"{100 * share[0]:.1f} ± {100 * share[1]:.1f} %"
