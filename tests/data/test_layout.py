"""Which files of a folder or a zip are read, and as what: one set of rules, and nothing is left out in silence."""

import errno
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from support import write_png

from ganbench.base.errors import UserError
from ganbench.data.sources import Options, open_source

ALL = [f"{c}/{i}.png" for c in ("train", "truck", "van", "ship") for i in range(3)]


def lay(place, files, form, name="set"):
    """Write small images, all pixels of image i are i, as a folder or a zip; return the source."""
    folder = place / f"{name}-files" if form == "zip" else place / name
    for i, file in enumerate(files):
        if file.endswith((".png", ".PNG")):
            write_png(folder / file, np.full((8, 8, 3), i, np.uint8))
        else:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("x")
    if form == "folder":
        return str(folder)
    with zipfile.ZipFile(place / f"{name}.zip", "w") as archive:
        for file in files:
            archive.write(folder / file, file)
    return str(place / f"{name}.zip")


def read(source, split=None):
    said = []
    made = open_source(source, split=split, options=Options(say=said.append))
    classes = None if made.labels is None else [made.classes[i] for i in made.labels.tolist()]
    return made.images[:, 0, 0, 0].tolist(), classes, made.origin, said


FORMS = pytest.mark.parametrize("form", ["folder", "zip"])


@FORMS
@pytest.mark.parametrize(
    ("files", "rows", "classes", "said"),
    [
        (ALL, [9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8], ["ship"] * 3 + ["train"] * 3 + ["truck"] * 3 + ["van"] * 3,
         ["'train' is read as a class"]),
        (["training/0.png", "testing/1.png"], [0], None, ["has the splits train, test: train is read"]),
        (["validation/a/0.png", "validation/b/1.png", "train/a/2.png", "train/b/3.png"], [2, 3], ["a", "b"],
         ["splits train, val"]),
        (["cat/deep/er/0.png", "dog/1.png"], [0, 1], ["cat", "dog"], []),
        (["around/cat/0.png", "around/dog/1.png"], [0, 1], ["cat", "dog"], []),
        (["around/0.png", "around/1.png"], [0, 1], None, []),
        (["0.png", "1.PNG", "notes.txt", "more/x.json", ".hidden.png", "__MACOSX/a.png"], [0, 1], None,
         ["2 hidden, 1 not an image: *.json, 1 not an image: *.txt"]),
    ],
    ids=["train is a class", "training", "validation", "nested", "wrapped", "flat in a folder", "left out"],
)
def test_folders_and_zips_follow_the_same_rules(place, form, files, rows, classes, said):
    found, labels, origin, remarks = read(lay(place, files, form))
    assert found == rows
    assert labels == classes
    assert len(remarks) == len(said)
    for text, words in zip(remarks, said, strict=True):
        assert words in text
    left_out = sum(origin.get("left_out", {}).values())
    assert left_out == sum(not f.lower().endswith(".png") or "." in f[:1] or "__" in f for f in files)


@FORMS
def test_a_split_is_asked_for_by_its_usual_name_and_all_reads_everything(place, form):
    source = lay(place, ["training/a/0.png", "training/b/1.png", "testing/a/2.png"], form)
    spec = f"folder:{source}" if form == "folder" else source
    assert read(f"{spec}:test")[0] == [2]
    assert read(f"{spec}:train")[1] == ["a", "b"]
    assert read(f"{spec}:all")[:2] == ([2, 0, 1], ["testing", "training", "training"])


@FORMS
def test_images_beside_class_folders_are_refused(place, form):
    with pytest.raises(UserError, match=r"mixes images with class folders: move 1\.png"):
        read(lay(place, ["train/0.png", "1.png"], form))


@FORMS
def test_class_folders_of_one_number_are_refused(place, form):
    with pytest.raises(UserError, match="'01' and '1' are one number"):
        read(lay(place, ["1/0.png", "01/1.png", "2/2.png"], form))


@FORMS
def test_the_index_of_stylegan_gives_the_labels_and_its_folders_are_no_classes(place, form):
    files = ["00000/img0.png", "00000/img1.png", "00001/img2.png"]
    folder = place / ("set-files" if form == "zip" else "set")
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f, 4 - i] for i, f in enumerate(files)]}))

    def labels():
        source = lay(place, files, "folder", folder.name)
        if form == "zip":
            source = str(place / "set.zip")
            with zipfile.ZipFile(source, "w") as archive:
                for name in ["dataset.json", *files]:
                    archive.write(folder / name, name)
        made = open_source(source)
        return None if made.labels is None else made.labels.tolist()

    assert labels() == [4, 3, 2]
    (folder / "dataset.json").write_text('{"labels": null}')
    assert labels() is None
    for broken in ('{"labels": [["00000/img0.png", 1]]}', '{"labels": [[1, 2, 3]]}', "[" * 10_000, '{"x": 1}',
                   json.dumps({"labels": [[f, -1] for f in files]})):
        (folder / "dataset.json").write_text(broken)
        with pytest.raises(UserError, match=r"dataset\.json gives no labels"):
            labels()


def test_every_format_that_pillow_reads_is_an_image(place):
    (place / "set").mkdir()
    picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    formats = {"png": "PNG", "gif": "GIF", "jfif": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "bmp": "BMP"}
    for suffix, name in formats.items():
        picture.save(place / "set" / f"a.{suffix}", name)
    assert len(open_source("set").images[:]) == len(formats)


def test_links_to_files_and_folders_are_followed_and_a_circle_ends(place):
    lay(place, ["cat/0.png", "cat/1.png"], "folder", "elsewhere")
    (place / "set").mkdir()
    for name in ("a", "b"):
        (place / "set" / name).symlink_to(place / "elsewhere" / "cat")
    (place / "set" / "a2").mkdir()
    (place / "set" / "a2" / "2.png").symlink_to(place / "elsewhere" / "cat" / "0.png")
    (place / "set" / "a2" / "up").symlink_to(place / "set")
    _found, classes, origin, _ = read("set")
    assert classes == ["a", "a", "a2", "b", "b"]
    assert origin["left_out"] == {"links to a folder that they lie in": 1}


def test_a_folder_that_may_not_be_read_is_an_error(place, monkeypatch):
    """Root may read everything, so that the refusal comes from the listing itself."""
    lay(place, ["a/0.png", "b/1.png"], "folder")

    def scandir(path, listing=os.scandir):
        if os.fspath(path).endswith("set/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot read the folder .*set/a"):
        read("set")


def test_a_zip_with_a_name_twice_is_refused_and_backslashes_are_folders(place):
    for i, name in enumerate(("a.png", "b.png")):
        write_png(place / name, np.full((8, 8, 3), i, np.uint8))
    with zipfile.ZipFile("twice.zip", "w") as archive:
        archive.write("a.png", "x.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write("b.png", "x.png")
    with pytest.raises(UserError, match=r"holds x\.png twice"):
        read("twice.zip")
    with zipfile.ZipFile("windows.zip", "w") as archive:
        archive.write("a.png", "cat\\a.png")
        archive.write("b.png", "dog\\b.png")
    assert read("windows.zip")[:2] == ([0, 1], ["cat", "dog"])


def test_a_folder_with_the_name_of_a_data_set_is_mentioned(place):
    lay(place, ["0.png", "1.png"], "folder", "digits")
    said = []
    assert len(open_source("digits", options=Options(say=said.append)).images) == 1297
    assert said == ["'digits' is the data set of that name; the folder is ./digits"]
    assert len(open_source("./digits").images) == 2


def test_the_result_counts_what_is_left_out(ganbench, place):
    lay(place, ["0.png", "1.png", "2.png", "notes.txt"], "folder")
    done = ganbench("evaluate", "--images", "set", "--metrics", "ms_ssim_all", "--json")
    assert json.loads(done.out)["fake"]["left_out"] == {"not an image: *.txt": 1}
    assert "files that are not read: 1 not an image: *.txt" in done.err


def test_classes_match_without_regard_to_case_and_others_are_named(ganbench, place):
    rng = np.random.default_rng(0)
    for folder, names in (("real", ("airplane", "big car")), ("fake", ("Airplane", "Big_Car", "boat"))):
        for name in names:
            for i in range(3):
                write_png(place / folder / name / f"{i}.png", rng.integers(0, 256, (8, 8), dtype=np.uint8))
    done = ganbench("evaluate", "--images", "fake", "--reference", "real", "--metrics", "fd_pixels")
    assert "1 of the images' classes are not in the reference: 'boat'" in done.err
