"""Pictures of what a result holds; every number in them comes from its file. Needs the extra `ganbench[figures]`."""

from dataclasses import dataclass
from pathlib import Path

from ganbench.errors import UserError
from ganbench.files import atomic_path
from ganbench.results import Measurement, Result

ACGAN = ("discriminability", "gaining_classes", "diverse_classes", "accuracy_diversity_correlation")


@dataclass(frozen=True)
class Panels:
    """The four panels of AC-GAN's analysis. By class: value on the x axis and on the y axis, in one order.

    resolutions: 'native' or a side in pixels, ascending; accuracy and real: value and standard error at each, real
    empty where real images were not measured. reduced: the side that `gain` compares with; gain: accuracy at that side
    and at native size. alike: MS-SSIM of real and of generated images; the largest real one is `threshold`.
    against: accuracy and MS-SSIM. share_gaining, share_diverse, r: (value, standard error).
    """

    resolutions: list[str]
    accuracy: list[tuple[float, float]]
    real: list[tuple[float, float]]
    reduced: str
    gain: list[tuple[float, float]]
    share_gaining: tuple[float, float]
    alike: list[tuple[float, float]]
    threshold: float
    share_diverse: tuple[float, float]
    against: list[tuple[float, float]]
    r: tuple[float, float]


def acgan_panels(result: Result) -> Panels:
    """What the four panels show, from a result with all of `ACGAN`. Raises UserError for what it lacks, and why."""
    found = {stem: _of(result.measurements, stem) for stem in ACGAN}
    for stem, measurements in found.items():
        if not measurements:
            raise UserError(f"the result has no '{stem}': evaluate with --metrics {','.join(ACGAN)}.")
        if measurements[0].value is None:
            raise UserError(f"the result has no value of '{stem}': {measurements[0].reason}.")
    accuracy = _by_resolution(found["discriminability"])
    real = _by_resolution(_of(result.real, "discriminability"))
    order = [*sorted((r for r in accuracy if r != "native"), key=int), "native"]
    gain, alike, against = (found[stem][0] for stem in ACGAN[1:])
    reduced = next(key for key in gain.details["per_class"] if key != "native")
    return Panels(
        resolutions=order, accuracy=[accuracy[r] for r in order],
        real=[real[r] for r in order] if set(order) <= set(real) else [],
        reduced=reduced.removeprefix("@"), gain=_pairs(gain, reduced, "native"), share_gaining=_value(gain),
        alike=_pairs(alike, "real", "fake"), threshold=alike.details["threshold"], share_diverse=_value(alike),
        against=_pairs(against, "accuracy", "ms_ssim"), r=_value(against),
    )  # fmt: skip


def acgan_figures(result: Result, out: Path) -> None:
    """Draw the figures of Odena et al. (2017, Figures 3, 5 and 6 and accuracy by resolution) as four panels: one PNG.

    Raises UserError for a result that lacks one of `ACGAN`, where matplotlib is missing, and where `out` cannot be
    written.
    """
    panels = acgan_panels(result)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "figures are drawn by matplotlib: install it with `pip install 'ganbench[figures]'`."
        ) from error

    figure = Figure(figsize=(10, 8), dpi=150, layout="constrained")
    by_resolution, gain, alike, against = figure.subplots(2, 2).flat

    for values, label, style in ((panels.accuracy, "generated", "o-"), (panels.real, "real", "s--")):
        if values:
            heights, errors = zip(*values, strict=True)
            by_resolution.errorbar(panels.resolutions, heights, errors, fmt=style, capsize=3, label=label)
    by_resolution.set(xlabel="resolution (pixels a side)", ylabel="accuracy", ylim=(0, None), title="Discriminability")
    by_resolution.legend()

    gain.scatter(*zip(*panels.gain, strict=True), s=12)
    gain.axline((0, 0), slope=1, color="grey", linewidth=1)
    gain.set(xlabel=f"accuracy of a class at {panels.reduced} pixels", ylabel="at native size",
             title=f"{_percent(panels.share_gaining)} of classes gain")  # fmt: skip

    alike.scatter(*zip(*panels.alike, strict=True), s=12)
    alike.axhline(panels.threshold, color="grey", linewidth=1)
    alike.set(xlabel="MS-SSIM of a class, real", ylabel="generated",
              title=f"{_percent(panels.share_diverse)} of classes below {panels.threshold:.3f}")  # fmt: skip

    against.scatter(*zip(*panels.against, strict=True), s=12)
    against.set(xlabel="accuracy of a class", ylabel="MS-SSIM, generated",
                title=f"r = {panels.r[0]:.2f} ± {panels.r[1]:.2f}")  # fmt: skip

    with atomic_path(out) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def _of(measurements: list[Measurement], stem: str) -> list[Measurement]:
    """All measurements of a protocol over the first extractor it was measured with, in their order."""
    own = [m for m in measurements if m.protocol.startswith(f"{stem}/")]
    return [m for m in own if m.extractor == own[0].extractor]


def _by_resolution(measurements: list[Measurement]) -> dict[str, tuple[float, float]]:
    """Value and error by 'native' (the first) and by side."""
    name = measurements[0].metric if measurements else ""
    return {m.metric[len(name) :].removeprefix("@") or "native": _value(m) for m in measurements if m.value is not None}


def _value(m: Measurement) -> tuple[float, float]:
    assert m.value is not None
    return m.value, m.error or 0.0


def _pairs(m: Measurement, x: str, y: str) -> list[tuple[float, float]]:
    """Two values for each class that has both."""
    a, b = m.details["per_class"][x], m.details["per_class"][y]
    return [(a[c], b[c]) for c in a if c in b]


def _percent(share: tuple[float, float]) -> str:
    return f"{100 * share[0]:.1f} ± {100 * share[1]:.1f} %"
