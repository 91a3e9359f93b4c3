"""Every data set's reader on the tree that is generated in its layout, clean and with the faults of real tables."""

import csv
import json
from collections import Counter

import hsta.generated.writer as writer
import numpy as np
import openpyxl
import pytest
from hsta.cli import main
from hsta.data.registry import DATASETS, read_dataset
from hsta.errors import UserError
from hsta.generated.clips import GeneratedClip
from hsta.generated.layouts import FORMATS, emotions_of
from hsta.generated.mark import MARKER
from hsta.generated.writer import generate_dataset

READERS = {"casme2-2014": "casme2"}


@pytest.fixture
def quick(monkeypatch):
    """Clips of ten grey pixels, eleven frames with the expression in the middle: the tables are what is tested."""

    def clip(portrait, emotion, rng, *, image_size, fps, amplitude):
        frames = [np.full((image_size, image_size, 3), 20 * t, np.uint8) for t in range(11)]
        return GeneratedClip(frames, 2, 5, 8, emotion, "4+7", 1.0)

    monkeypatch.setattr(writer, "generate_clip", clip)
    monkeypatch.setattr(writer, "subject_portrait", lambda seed, subject: None)


def generate(root, name, subjects=3, clips=6, **options):
    generate_dataset(root, subjects, clips, format=name, image_size=32, progress=False, **options)


def read(root, name, classes=None):
    return read_dataset(READERS.get(name, name), root, classes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_clean_tree_is_read_whole(tmp_path, quick, name):
    generate(tmp_path, name)
    index = read(tmp_path, name)
    assert (len(index.clips), index.lost, index.faults) == (18, 0, [])
    assert len({clip.person for clip in index.clips}) == 3
    assert index.generated
    for clip in index.clips:
        assert len(clip.frames) == 7  # from onset to offset
        assert clip.apex == (None if clip.dataset == "smic" else 3)
        assert clip.emotion == index.class_names[clip.label]
    assert len({clip.label for clip in index.clips}) > 1


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "megc2019"])
def test_the_faults_of_real_tables_cost_no_clip(tmp_path, quick, name):
    generate(tmp_path, name, faults=True)
    index = read(tmp_path, name)
    assert len(index.clips) == 18
    assert len({clip.person for clip in index.clips}) == 3
    assert index.lost == 1  # the folder that is missing
    told = "\n".join(map(str, index.faults))
    assert "is missing or holds no image, left out" in told
    assert "given twice, also in row" in told
    assert "offset 0 before onset" in told
    if name != "smic":  # which knows no apex
        for words in ("no apex ('/')", "is the onset"):
            assert words in told
        assert told.count(" outside ") == 2
    spans = Counter(len(clip.frames) for clip in index.clips)
    assert spans[7] >= 16  # numbers as text and as dates are numbers


def test_megc2019_is_three_sets_with_people_apart(tmp_path, quick):
    generate(tmp_path, "megc2019", subjects=4, faults=True)
    index = read(tmp_path, "megc2019")
    people = {clip.person for clip in index.clips}
    assert Counter(dataset for dataset, _ in people) == {"casme2": 2, "samm": 1, "smic": 1}
    assert index.class_names == ("negative", "positive", "surprise")
    assert {clip.subject for clip in index.clips} == {"sub01", "sub02", "001", "s1"}  # as the folders are named
    assert index.lost == 0
    lines = list(csv.reader((tmp_path / "combined_3class_gt.csv").open()))
    assert lines[0][:3] == ["casme2", "sub01", "EP01_01f"]
    book = openpyxl.load_workbook(tmp_path / "samm" / "SAMM_Micro_FACS_Codes_v2.xlsx")
    book.active.delete_rows(16)
    book.save(tmp_path / "samm" / "SAMM_Micro_FACS_Codes_v2.xlsx")
    index = read(tmp_path, "megc2019")
    assert len(index.clips) == 24
    assert "001_2_1: not in the annotation of samm" in " ".join(index.told)
    for part in ("casme2", "samm", "smic"):
        for table in (tmp_path / part).glob("*.xlsx"):
            table.unlink()
    bare = read(tmp_path, "megc2019")
    assert len(bare.clips) == 24
    assert {(clip.dataset, len(clip.frames)) for clip in bare.clips} == {("casme2", 7), ("samm", 11), ("smic", 7)}
    assert "all frames of a clip's folder are the clip" in " ".join(bare.notes)


CLASSES = {
    ("casme2", "5"): ("others", "disgust", "happiness", "repression", "surprise"),
    ("casme2", "3"): ("negative", "positive", "surprise"),
    ("samm", "5"): ("anger", "happiness", "other", "surprise", "contempt"),
    ("casme3", "3"): ("negative", "positive", "surprise"),
    ("mmew", "3"): ("negative", "positive", "surprise"),
    **{(name, "objective"): ("I", "II", "III", "IV", "V", "VI", "VII") for name in ("casme2", "samm", "casme3")},
    ("casme2-2014", "objective"): ("I", "II", "III", "IV", "V", "VI", "VII"),
}


@pytest.mark.parametrize(("name", "classes"), CLASSES)
def test_classes(tmp_path, quick, name, classes):
    generate(tmp_path, name, clips=7)
    index = read(tmp_path, name, classes)
    assert index.class_names == CLASSES[name, classes]
    whole = read(tmp_path, name)
    counts, all_counts = (Counter(clip.emotion for clip in each.clips) for each in (index, whole))
    if classes == "objective":
        assert len(index.clips) == 21
    elif classes == "5":
        assert counts == {name: n for name, n in all_counts.items() if name in index.class_names}
    else:
        happy = "happy" if name == "casme3" else "happiness"
        assert (counts["positive"], counts["surprise"]) == (all_counts[happy], all_counts["surprise"])
        others = sum(all_counts[other] for other in ("others", "sadness", "fear"))
        if name == "casme2":  # in MEGC 2019 its negative is disgust and repression only
            assert counts["negative"] == all_counts["disgust"]
            assert f"{others} clips belong to none of the classes asked for" in " ".join(index.notes)
        else:
            assert counts["negative"] == 21 - all_counts["others"] - counts["positive"] - counts["surprise"]
    assert index.lost == 0


def test_classes_that_a_set_has_not_are_refused(tmp_path, quick):
    generate(tmp_path, "smic")
    with pytest.raises(UserError, match="smic has no classes '5'; known: 3"):
        read(tmp_path, "smic", "5")


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_can_be_generated(name):
    assert name in FORMATS
    assert len(emotions_of(name)) >= 3


def test_a_clip_with_frames_of_other_numbers_is_the_clip_all_the_same(tmp_path, quick):
    generate(tmp_path, "casme2")
    folder = tmp_path / "sub01" / "EP01_01f"
    for number, frame in enumerate(sorted(folder.iterdir()), 5000):
        frame.rename(folder / f"{number}.jpg")
    index = read(tmp_path, "casme2")
    assert (index.clips[0].apex, len(index.clips[0].frames), index.lost) == (3, 7, 0)
    assert "the 7 frames of the folder serve, counted from the onset" in str(index.faults[0])


def test_two_folders_of_one_person_are_one_subject_and_copies_are_told(tmp_path, quick):
    generate(tmp_path, "samm", subjects=2)
    (tmp_path / "1").mkdir()
    (tmp_path / "001" / "001_2_1").rename(tmp_path / "1" / "001_2_1")
    (tmp_path / "SAMM_cropped").mkdir()
    (tmp_path / "002").rename(tmp_path / "SAMM_cropped" / "002")
    generate_dataset(tmp_path / "again", 2, 6, format="samm", image_size=32, progress=False)
    (tmp_path / "again" / "SAMM_Micro_FACS_Codes_v2.xlsx").unlink()
    index = read(tmp_path, "samm")
    assert Counter(clip.subject for clip in index.clips) == {"001": 6, "002": 6}
    assert all("SAMM_cropped" in str(clip.frames[0]) for clip in index.clips if clip.subject == "002")
    assert sum("frames lie in" in fault.message for fault in index.faults) == 3  # once for each two places


def test_other_cameras_of_smic_are_not_taken(tmp_path, quick):
    generate(tmp_path / "HS", "smic")
    generate(tmp_path / "VIS", "smic")
    (tmp_path / "VIS" / "SMIC-HS-E_annotation.xlsx").unlink()
    index = read(tmp_path, "smic")
    assert "frames lie in" not in " ".join(index.told)
    assert all("HS" in clip.frames[0].parts for clip in index.clips)


def test_a_set_of_another_format_in_the_same_place_is_replaced(tmp_path, quick):
    generate(tmp_path, "casme2-2014")
    generate(tmp_path, "samm")
    assert len(list(tmp_path.rglob("*.jpg"))) == 18 * 11
    assert [path.name for path in tmp_path.glob("*.xlsx")] == ["SAMM_Micro_FACS_Codes_v2.xlsx"]
    assert json.loads((tmp_path / MARKER).read_text())["format"] == "samm"


def test_ones_own_data(tmp_path, quick):
    generate(tmp_path, "folder", subjects=2)
    (tmp_path / MARKER).unlink()
    (tmp_path / "annotation.csv").write_text(
        "subject,clip,emotion\n"
        "person1,person1/clip1,joy\n"
        "person1,clip2,Anger\n"
        "PERSON2, person2/clip1 ,anger\n"
        "person2,person2/clip9,anger\n"
        "person3,clip1,anger\n"  # not somebody else's clip1
    )
    index = read(tmp_path, "folder")
    assert index.class_names == ("Anger", "joy")
    assert [(clip.subject, len(clip.frames), clip.apex) for clip in index.clips] == [
        ("person1", 11, None),
        ("person1", 11, None),
        ("PERSON2", 11, None),
    ]
    assert [(fault.file, fault.row) for fault in index.faults] == [("annotation.csv", 5), ("annotation.csv", 6)]
    assert len({clip.person for clip in index.clips}) == 2


def test_ones_own_reader(tmp_path):
    class Mine:
        name = "mine"

        def read(self, root, classes=None):
            return (root, classes)

    assert read_dataset(Mine(), tmp_path, "3") == (tmp_path, "3")


def check(*arguments, capsys):
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr()


def test_check_answers_as_json(tmp_path, quick, capsys):
    generate(tmp_path, "samm", faults=True)
    code, said = check("--dataset", "samm", "--data", tmp_path, "--json", capsys=capsys)
    answer = json.loads(said.out)
    assert code == 1
    assert (answer["dataset"], answer["clips"], answer["subjects"], answer["lost"]) == ("samm", 18, 3, 1)
    assert sum(answer["classes"].values()) == 18 and answer["classes"]["contempt"] == 0
    assert all(set(fault) == {"file", "row", "message"} for fault in answer["faults"])
    lost = next(fault for fault in answer["faults"] if "left out" in fault["message"])
    assert (lost["file"], lost["row"]) == ("SAMM_Micro_FACS_Codes_v2.xlsx", 14 + 18 + 2)


def test_check_tells_people_and_finds_broken_frames(tmp_path, quick, capsys):
    generate(tmp_path, "casme2")
    code, said = check("--dataset", "casme2", "--data", tmp_path, capsys=capsys)
    assert code == 0 and "nothing is wrong" in said.out
    frames = sorted((tmp_path / "sub02" / "EP03_01f").iterdir())
    frames[3].write_bytes(frames[3].read_bytes()[:20])
    code, said = check("--dataset", "casme2", "--data", tmp_path, capsys=capsys)
    assert code == 0
    assert said.out.count("broken one") == 1
    assert f"sub02/EP03_01f/{frames[3].name}" in said.out
    for frame in frames:
        frame.write_bytes(b"")
    code, said = check("--dataset", "casme2", "--data", tmp_path, capsys=capsys)
    assert code == 1
    assert "sub02 EP03_01f: no frame can be read, left out" in said.out


def test_check_says_where_a_copy_differs_from_what_was_published(tmp_path, quick, capsys):
    generate(tmp_path, "mmew")
    (tmp_path / MARKER).unlink()  # as if it were a copy of the real one
    code, said = check("--dataset", "mmew", "--data", tmp_path, capsys=capsys)
    assert code == 0
    for words in ("18 clips, published are 300", "3 subjects, published are 36", "clips of anger, published are 8"):
        assert f"MMEW_Micro_Exp.xlsx: {words}" in said.out or words in said.out


@pytest.mark.parametrize("name", DATASETS)
def test_what_was_published_adds_up(name):
    for edition in getattr(DATASETS[name], "editions", ()):
        for column, counts in edition.counts.items():
            assert sum(counts.values()) == edition.clips, (name, edition.table, column)


def test_cells_of_generated_workbooks_are_of_the_real_kinds(tmp_path, quick):
    generate(tmp_path / "casme2", "casme2")
    book = openpyxl.load_workbook(tmp_path / "casme2" / "CASME2-coding-20190701.xlsx")
    assert len(book.sheetnames) == 3
    first = [cell.value for cell in next(book.active.iter_rows(min_row=2))]
    assert first[:3] == ["01", "EP01_01f", None] and isinstance(first[3], int)
    generate(tmp_path / "samm", "samm")
    sheet = openpyxl.load_workbook(tmp_path / "samm" / "SAMM_Micro_FACS_Codes_v2.xlsx")["MICRO_ONLY"]
    assert (sheet["A14"].value, sheet["A15"].value, sheet["B15"].value) == ("Subject", "001", "001_1_1")
