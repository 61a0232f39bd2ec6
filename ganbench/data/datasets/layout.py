"""Which files of a folder or a zip are its images, and which labels and splits their names give: one set of rules.

1. Every file beneath the folder is counted. It is an image by its suffix, or it is left out, and the count of those
   left out goes into the result with the reason. Links are followed. A folder that may not be read is an error.
2. If all folders at the top are splits (`train`, `training`, `val`, `valid`, `validation`, `test`, `testing`) and no
   image lies beside them, one split is read. Otherwise a folder with such a name is a class like the others.
3. The folders at the top are the classes, whatever lies between them and the images. One folder around everything is
   no class. Images beside class folders are an error.
4. `dataset.json` beside the images, as StyleGAN's tools write it, gives the labels; its folders are no classes.
5. Files whose names, or whose folders, begin with a dot, and `__MACOSX`, are left out.
"""

import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from ganbench.base.errors import UserError
from ganbench.data.datasets import UnknownSplit, unknown_split
from ganbench.data.decoding import BROKEN_ARCHIVE, LARGEST_FILE, SUFFIXES, File, reason, require_regular

SPLITS = {
    "train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
INDEX = "dataset.json"  # of StyleGAN's tools
LARGEST_INDEX = 1 << 30  # bytes


@dataclass(frozen=True)
class Entry:
    """A file beneath a folder or in a zip. path: relative, with slashes. image: False for the index of labels."""

    path: str
    file: File

    @property
    def folders(self) -> list[str]:
        return self.path.split("/")[:-1]


@dataclass(frozen=True)
class Layout:
    """The images of a folder, a zip or a split of one, in the sorted order of their paths.

    where: its name for messages. split: "all", or the canonical name of the split. classes: the name of each image's
    class, or None without class folders. known: all names of classes, also of other splits. labels: by path, from the
    index, or None. left_out: number of files by reason. remarks: sentences about what was read in one of two ways.
    """

    where: str
    entries: list[Entry]
    split: str = "all"
    splits: tuple[str, ...] = ()
    classes: list[str] | None = None
    known: Set[str] = frozenset()
    labels: dict[str, int] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def files(self) -> list[File]:
        return [entry.file for entry in self.entries]

    @property
    def names(self) -> list[str]:
        return [entry.path for entry in self.entries]


def of_folder(path: Path, split: str | None = None, labelled: bool = True) -> Layout:
    """Return the images beneath a folder. split: the split to read, if it has splits. labelled: False ignores classes.

    Raises UserError if the path is no folder, holds no image or may not be read, and for an unknown split.
    """
    if not os.path.isdir(path):  # False too for a name that is too long
        what = "is a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {what}: give a folder of images (for a recipe: --data folder:PATH).")
    left_out: Counter[str] = Counter()
    entries = sorted(_walk(path, left_out), key=lambda entry: entry.path.split("/"))
    return _arrange(str(path), entries, left_out, split, labelled, f"folder:{path}")


def of_zip(path: Path, split: str | None = None, labelled: bool = True) -> Layout:
    """Return the images in a zip, by the same rules. Raises UserError if it is damaged or names a member twice."""
    left_out: Counter[str] = Counter()
    try:
        found = path.stat()
        require_regular_zip(found, path)
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except BROKEN_ARCHIVE as error:
        raise UserError(
            f"{path} cannot be read as a zip ({reason(error)}): check the path, or pack it again."
        ) from error
    twice = [name for name, count in Counter(info.filename for info in infos).items() if count > 1]
    if twice:
        raise UserError(f"{path} holds {_first_and_count(sorted(twice))} twice: pack it again, with one file a name.")
    entries = []
    for info in infos:
        name = info.filename.replace("\\", "/").removeprefix("./")
        entry = Entry(name, File(str(path), info.filename, info.file_size, found.st_mtime_ns))
        if _wanted(name, left_out):
            if info.file_size > LARGEST_FILE:
                raise UserError(f"{path}/{name} unpacks to {info.file_size:,} bytes, which no image of a set has.")
            entries.append(entry)
    entries.sort(key=lambda entry: entry.path.split("/"))
    return _arrange(str(path), entries, left_out, split, labelled, str(path))


def require_regular_zip(found: os.stat_result, path: Path) -> None:
    """Raise UserError unless a path is a regular file: a FIFO would be waited for."""
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no regular file: give one.")


def _walk(path: Path, left_out: Counter[str]) -> Iterator[Entry]:
    """The image files and the index beneath a folder. Links are followed; a link into its own parents is left out."""

    def fail(error: OSError) -> None:
        raise UserError(
            f"cannot read the folder {error.filename}: {error.strerror}. Change its permissions, or remove it."
        ) from error

    root = str(path)
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        relative = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        for name in list(folders):
            try:
                found = os.stat(os.path.join(folder, name))
                circle = any(os.path.samestat(found, os.stat(above)) for above in _above(folder, root))
            except OSError as error:
                raise UserError(
                    f"cannot read the folder {os.path.join(folder, name)}: {error.strerror}. Give a folder of images, "
                    "to which nothing writes."
                ) from error
            if circle:
                folders.remove(name)
                left_out["links to a folder that they lie in"] += 1
        for name in names:
            if not _wanted(relative + name, left_out):
                continue
            file = os.path.join(folder, name)
            try:
                found = os.stat(file)
            except OSError as error:
                what = "is a link to nothing" if os.path.islink(file) else f"cannot be read ({error.strerror})"
                raise UserError(f"{file} {what}: remove or replace it.") from error
            require_regular(found, file)
            yield Entry(relative + name, File(file, None, found.st_size, found.st_mtime_ns))


def _above(folder: str, root: str) -> Iterator[str]:
    """The folder, and those above it, up to the root."""
    while True:
        yield folder
        if folder == root:
            return
        folder = os.path.dirname(folder)


def _wanted(path: str, left_out: Counter[str]) -> bool:
    """Return True for an image or an index; count any other file."""
    parts = path.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        left_out["hidden"] += 1
        return False
    if parts[-1].lower().endswith(SUFFIXES) or parts[-1] == INDEX:
        return True
    suffix = os.path.splitext(parts[-1])[1].lower()
    left_out[f"not an image: *{suffix[:12]}" if suffix else "not an image: no suffix"] += 1
    return False


def _arrange(
    where: str, entries: list[Entry], left_out: Counter[str], split: str | None, labelled: bool, spec: str
) -> Layout:
    """Apply the rules about splits, classes and the index to the files that were found."""
    images = [entry for entry in entries if not entry.path.endswith(INDEX)]
    if not images:
        raise UserError(f"{where} holds no images (looked for {', '.join(SUFFIXES)}){_others(left_out)}: give another.")
    tops = {entry.folders[0] if entry.folders else "" for entry in images}
    layout = Layout(where, entries, left_out=dict(left_out))
    if split != "all" and tops <= set(SPLIT_OF):
        layout = _of_split(layout, tops, split, spec)
    elif split not in (None, "train", "all"):
        raise UnknownSplit(f"{where} has no split '{split}': make folders {where}/train and {where}/{split}.")
    elif split is None and (named := sorted(tops & set(SPLIT_OF))):
        layout = replace(layout, remarks=(
            f"{where}: '{named[0]}' is read as a class, since not all folders are splits (its split: folder:"
            f"{where}/{named[0]})",
        ))
    return _labelled(layout) if labelled else replace(
        layout, entries=[e for e in layout.entries if not e.path.endswith(INDEX)])


def _of_split(layout: Layout, tops: set[str], split: str | None, spec: str) -> Layout:
    """Keep the images of one split, with paths relative to its folder."""
    splits = tuple(s for s in SPLITS if any(SPLIT_OF[top] == s for top in tops))
    wanted = SPLIT_OF.get(split, split) if split else "train" if "train" in splits else splits[0]
    if wanted not in splits:
        raise unknown_split(Path(layout.where).resolve().name, str(split), splits)
    entries = [
        Entry(entry.path.partition("/")[2], entry.file)
        for entry in layout.entries if entry.folders and SPLIT_OF.get(entry.folders[0]) == wanted
    ]
    known = {e.folders[1] for e in layout.entries if len(e.folders) > 1}
    remarks: tuple[str, ...] = ()
    if split is None and len(splits) > 1:
        others = ", ".join(f"{spec}:{s}" for s in splits if s != wanted)
        remarks = (f"{layout.where} has the splits {', '.join(splits)}: {wanted} is read (for others: {others})",)
    return replace(layout, entries=entries, split=wanted, splits=splits, known=known, remarks=remarks)


def _labelled(layout: Layout) -> Layout:
    """Find the labels: in the index, or in the folders at the top."""
    entries = layout.entries
    while True:
        tops = {entry.folders[0] if entry.folders else "" for entry in entries}
        if len(tops) > 1 or "" in tops or layout.known - tops:
            break
        (around,) = tops  # one folder around everything
        entries = [Entry(entry.path.removeprefix(around + "/"), entry.file) for entry in entries]
    images = [entry for entry in entries if not entry.path.endswith(INDEX)]
    kept = [e for e in layout.entries if not e.path.endswith(INDEX)]
    index = next((entry for entry in entries if entry.path == INDEX), None)
    if index is not None:
        labels = _read_index(index.file, {e.path: k.path for e, k in zip(images, kept, strict=True)})
        return replace(layout, entries=kept, labels=labels)
    tops = {entry.folders[0] if entry.folders else "" for entry in images}
    if tops == {""}:
        return replace(layout, entries=kept)
    if "" in tops:
        loose = next(entry for entry in images if not entry.folders)
        raise UserError(
            f"{layout.where} mixes images with class folders: move {loose.path} into a class folder, or give the "
            "labels in a CSV file."
        )
    return replace(layout, entries=kept, classes=[entry.folders[0] for entry in images])


def _read_index(file: File, paths: dict[str, str]) -> dict[str, int] | None:
    """The labels in StyleGAN's `dataset.json`: {"labels": [[path, class], ...]}, or null. Raises UserError otherwise.

    paths: the images as the index names them, and the names that the result has.
    """
    try:
        if file.size > LARGEST_INDEX:
            raise ValueError("it is too large")
        content = json.loads(file.read())
        pairs = content["labels"]
        if pairs is None:
            return None
        labels = {name.replace("\\", "/"): label for name, label in pairs}
        if not all(isinstance(label, int) and not isinstance(label, bool) and label >= 0 for label in labels.values()):
            raise ValueError("its labels are no whole numbers of 0 or more")
        missing = [name for name in paths if name not in labels]
        if missing:
            raise ValueError(f"it has no label for {_first_and_count(missing)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file.name} gives no labels ({reason(error)}): write it as StyleGAN's tools do, or remove it."
        ) from error
    return {paths[name]: labels[name] for name in paths}


def _first_and_count(names: list[str]) -> str:
    """Return the first name and how many more there are, for a message."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _others(left_out: Counter[str]) -> str:
    return f" among {sum(left_out.values()):,} files" if left_out else ""
