"""Answers to names of metrics that are not known: other tools call the same formula by other names."""

from collections.abc import Mapping

from ganbench.base.errors import did_you_mean

# Names in other tools, in lower case with "_" for "-", and the names here.
HERE = {
    "accuracy": ["discriminability"],
    "authpct": ["auth_share"],
    "cas": ["gan_train"],
    "classification_accuracy_score": ["gan_train"],
    "clean_fid": ["fid"],
    "cleanfid": ["fid"],
    "dc": ["density", "coverage"],
    "density_coverage": ["density", "coverage"],
    "fid10k": ["fid10k_full"],
    "fid50k": ["fid50k_full"],
    "fid5k": ["fid5k_full"],
    "fid_infinity": ["fid_inf"],
    "frechet_distance": ["fd"],
    "frechet_inception_distance": ["fid"],
    "improved_precision": ["precision"],
    "improved_recall": ["recall"],
    "inception": ["inception_score"],
    "inceptionscore": ["inception_score"],
    "ipr": ["precision", "recall"],
    "is": ["inception_score"],
    "is50k": ["inception_score"],
    "is_inception": ["inception_score"],
    "isc": ["inception_score"],
    "kernel_inception_distance": ["kid"],
    "kid50k": ["kid"],
    "kid50k_full": ["kid"],
    "kid5k_full": ["kid"],
    "memorization": ["memorised_share"],
    "mmd": ["kd", "mmd_rbf"],
    "mode_coverage": ["modes"],
    "mssim": ["ms_ssim"],
    "msssim": ["ms_ssim"],
    "number_of_modes": ["modes"],
    "parzen": ["parzen_ll"],
    "path_length": ["ppl_end_lpips-vgg16"],
    "perceptual_path_length": ["ppl_end_lpips-vgg16"],
    "ppl2_wend": ["ppl_end_lpips-vgg16"],
    "ppl_wend": ["ppl_end_lpips-vgg16"],
    "ppl_zend": ["ppl_end_lpips-vgg16"],
    "pr": ["precision", "recall"],
    "pr50k3": ["precision", "recall"],
    "pr50k3_full": ["precision", "recall"],
    "prc": ["precision", "recall"],
    "prdc": ["precision", "recall", "density", "coverage"],
    "precision_recall": ["precision", "recall"],
    "sfid": ["fd_inception-v3-spatial"],
    "sliced_wasserstein": ["swd"],
    "sliced_wasserstein_distance": ["swd"],
    "ssim": ["ms_ssim"],
}
INSTEAD = {
    "lpips": "LPIPS is a distance of two images and no metric of a set: variety is 'ms_ssim', and the path length over "
    "LPIPS is 'ppl_end_lpips-vgg16'.",
    "psnr": "It is a distance of two images and no metric of a set: for a model that reconstructs, there is "
    "'reconstruction_mse'.",
    "nll": "Likelihoods are not measured: the nearest is 'parzen_ll'.",
    "bpd": "Likelihoods are not measured: the nearest is 'parzen_ll'.",
    "clip_fid": "CLIP is not among the extractors: 'fd' is the formula over those of `ganbench list extractors`.",
    "cmmd": "CLIP is not among the extractors: 'mmd_rbf' is the formula over those of `ganbench list extractors`.",
}


def hint(name: str, published: Mapping[str, tuple[str, str]], stems: Mapping[str, bool]) -> str:
    """Return the end of a message about a name that is no metric, with a space before it.

    published: stem and extractor of the published protocols, by their names. stems: whether a formula is over features
    of an extractor, by its name.

    >>> hint("FID", {"fid": ("fd", "inception-v3")}, {"fd": True})
    " Did you mean 'fid'?"
    >>> hint("prc", {}, {"precision": True, "recall": True})
    " Did you mean 'precision,recall'?"
    """
    known, plain = [*published, *stems], _plain(name)
    for other in known:
        if _plain(other) == plain:
            return f" Did you mean '{other}'?"
    if len(words := name.split()) > 1 and all(_plain(word) in map(_plain, known) for word in words):
        return f" Separate names by commas: '{','.join(words).lower()}'."
    if plain in HERE:
        return f" Did you mean '{','.join(HERE[plain])}'?"
    if plain in INSTEAD:
        return f" {INSTEAD[plain]}"
    for kept in sorted(published, key=len, reverse=True):
        if plain.startswith(f"{kept}_"):
            stem, extractor = published[kept]
            own = name[len(kept) + 1 :].casefold()
            return f" '{kept}' is the name over {extractor}: over another network the formula is '{stem}_{own}'."
    for stem in sorted(stems, key=len, reverse=True):
        if plain.startswith(f"{stem}_"):
            right = name.casefold() if stems[stem] else stem
            return f" Did you mean '{right}'?" + ("" if stems[stem] else " It is over no extractor.")
    return did_you_mean(name if did_you_mean(name, known, "-") != " -" else plain, known)


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
