"""Label noise: which wrong labels a recipe puts on its training images, and how often.

A recipe asks for it in [train], and a model that knows the noise takes kind and rate in the same words:

    label_noise = { kind = "symmetric", rate = 0.7, seed = 12345 }

>>> transition_matrix("symmetric", 0.5, 2)
[[0.75, 0.25], [0.25, 0.75]]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("symmetric", "asymmetric")
LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState

# Classes that are mistaken for each other (Patrini et al., "Making Deep Neural Networks Robust to Label Noise", 2017).
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FLIPS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
CIFAR100_SUPERCLASSES = (
    ("beaver", "dolphin", "otter", "seal", "whale"),
    ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    ("orchid", "poppy", "rose", "sunflower", "tulip"),
    ("bottle", "bowl", "can", "cup", "plate"),
    ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    ("clock", "keyboard", "lamp", "telephone", "television"),
    ("bed", "chair", "couch", "table", "wardrobe"),
    ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    ("bear", "leopard", "lion", "tiger", "wolf"),
    ("bridge", "castle", "house", "road", "skyscraper"),
    ("cloud", "forest", "mountain", "plain", "sea"),
    ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    ("fox", "porcupine", "possum", "raccoon", "skunk"),
    ("crab", "lobster", "snail", "spider", "worm"),
    ("baby", "boy", "girl", "man", "woman"),
    ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
)
CIFAR100 = tuple(sorted(name for group in CIFAR100_SUPERCLASSES for name in group))
CIFAR100_FLIPS = {name: group[i - 4] for group in CIFAR100_SUPERCLASSES for i, name in enumerate(group)}
FLIPS = {len(CIFAR10): (CIFAR10, CIFAR10_FLIPS), len(CIFAR100): (CIFAR100, CIFAR100_FLIPS)}  # by number of classes


@dataclass(frozen=True)
class LabelNoise:
    """Noise on the labels of training images, drawn once for each image.

    kind: 'symmetric' replaces a label by a class drawn uniformly from all, the true one among them; 'asymmetric' turns
    it into the class that it is mistaken for (see `flips`). rate: the probability. seed: of NumPy's RandomState.
    """

    kind: str
    rate: float
    seed: int = 12345

    def __str__(self) -> str:
        return f"{self.kind}, rate {self.rate:g}, seed {self.seed}"


def fault(noise: LabelNoise) -> tuple[str, str] | None:
    """Return the key with a value that cannot be used, and what it must be; None if there is no such key.

    >>> fault(LabelNoise("symmetric", 1.5))
    ('rate', 'must be in [0, 1], not 1.5')
    """
    if noise.kind not in KINDS:
        return "kind", f"must be one of {', '.join(KINDS)}, not '{noise.kind}'"
    if not 0 <= noise.rate <= 1:
        return "rate", f"must be in [0, 1], not {noise.rate:g}"
    if not 0 <= noise.seed <= LARGEST_SEED:
        return "seed", f"must be a whole number from 0 to {LARGEST_SEED}, not {noise.seed}"
    return None


def flips(classes: Sequence[str]) -> dict[int, int]:
    """Return the class that each class is mistaken for, both by number; a class without an entry is never mistaken.

    classes: names of all classes; case does not matter, nor whether words are joined by "_", "-" or a space. With the
    names of CIFAR-10's pairs: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog. With CIFAR-100's
    names: the next class of the same superclass, the first after the last.
    Raises ValueError for other names.

    >>> flips(CIFAR10)
    {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    """
    numbers = {re.sub("[-_ ]+", "_", name.casefold().strip()): i for i, name in enumerate(classes)}
    for pairs in (CIFAR100_FLIPS, CIFAR10_FLIPS):
        if numbers.keys() >= {*pairs, *pairs.values()}:
            return {numbers[a]: numbers[b] for a, b in pairs.items()}
    raise ValueError("asymmetric label noise knows the classes of CIFAR-10 and CIFAR-100, by name")


def transition_matrix(kind: str, rate: float, num_classes: int) -> list[list[float]]:
    """Return T, whose entry [i][j] is the probability that the label i of an image is read as j; rows sum to 1.

    num_classes: for asymmetric noise 10 or 100, the classes of CIFAR in their order. Raises ValueError for an unknown
    kind, a rate outside [0, 1] and another number of classes.
    """
    if wrong := fault(LabelNoise(kind, rate)):
        raise ValueError(" ".join(wrong))
    if kind == "asymmetric" and num_classes not in FLIPS:
        raise ValueError(f"asymmetric label noise is of the 10 or 100 classes of CIFAR, not of {num_classes}")
    pairs = flips(FLIPS[num_classes][0]) if kind == "asymmetric" else {}
    matrix = []
    for i in range(num_classes):
        replaced = rate if kind == "symmetric" or i in pairs else 0.0
        share = replaced / num_classes if kind == "symmetric" else 0.0
        row = [share] * num_classes
        row[i] += 1 - replaced
        if i in pairs:
            row[pairs[i]] += replaced
        matrix.append(row)
    return matrix
