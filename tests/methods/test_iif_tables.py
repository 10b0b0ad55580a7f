"""IIF class tables: the three layouts, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from ltpipe.errors import UserError
from ltpipe.methods.iif.class_tables import ClassTable, check_table, read_table
from tests.published.iif_csv import table_from_counts, write_table

NAMES = ["fork", "person", "hair drier"]
IMAGES, INSTANCES, NUM_IMAGES = [55, 640, 2], [80, 2600, 2], 1180


@pytest.fixture
def table() -> ClassTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return table_from_counts(IMAGES, INSTANCES, NUM_IMAGES, NAMES)


def quiet_check(table: ClassTable, **changes: object) -> None:
    """Check against the right data set, with changes; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = {
            "image_counts": IMAGES,
            "instance_counts": INSTANCES,
            "num_images": NUM_IMAGES,
            "names": NAMES,
            **changes,
        }
        check_table(table, **given)


@pytest.mark.parametrize("layout", ["lvis", "coco", "elab"])
def test_layouts_give_the_same_vectors(table: ClassTable, layout: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", table, layout)
    got = read_table(tmp_path / "t.csv")
    np.testing.assert_array_equal(got.image_counts, IMAGES)
    np.testing.assert_array_equal(got.instance_counts, INSTANCES)
    assert got.names == (None if layout == "lvis" else NAMES)
    assert got.num_images == NUM_IMAGES and got.num_instances == sum(INSTANCES)
    assert len(got.weights) == (3 if layout == "elab" else 14)
    for variant in ("raw", "smooth", "rel"):
        np.testing.assert_allclose(got.column(variant), table.column(variant), rtol=1e-14)
    quiet_check(got)


def test_headers_are_those_of_the_repository(table: ClassTable, tmp_path: Path) -> None:
    heads = {
        "lvis": "smooth,raw,prob,normit,gombit,base2,base10,smooth_obj,raw_obj,prob_obj,normit_obj,gombit_obj,"
        "base2_obj,base10_obj,img_freq,instance_freq",
        "coco": "class,smooth,raw,prob,gombit,normit,base2,base10,smooth_obj,raw_obj,prob_obj,normit_obj,gombit_obj,"
        "base2_obj,base10_obj,instance_freq,img_freq,names",
        "elab": ",Unnamed: 0,smooth,raw,prob,img_freq,names,instance_freq",
    }
    for layout, head in heads.items():
        write_table(tmp_path / f"{layout}.csv", table, layout)
        assert (tmp_path / f"{layout}.csv").read_text().splitlines()[0].replace('""', "") == head
    assert (tmp_path / "lvis.csv").read_text().splitlines()[1] == "1,1,1,1,1,1,1,1,1,1,1,1,1,1,0,0"
    assert (tmp_path / "coco.csv").read_text().splitlines()[1] == "-1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"
    assert len((tmp_path / "elab.csv").read_text().splitlines()) == 4


def test_wrong_row_count(table: ClassTable) -> None:
    with pytest.raises(UserError, match="another number of classes"):
        quiet_check(table, image_counts=[*IMAGES, 1], instance_counts=[*INSTANCES, 1], names=None)


def test_wrong_order_names_and_counts(table: ClassTable) -> None:
    with pytest.raises(UserError, match="another name"):
        quiet_check(table, names=NAMES[::-1])
    with pytest.raises(UserError, match=r"another image count(.|\n)*class 0(.|\n)*55 \(2 classes differ"):
        quiet_check(table, image_counts=IMAGES[::-1], names=None)
    with pytest.raises(UserError, match="another instance count"):
        quiet_check(table, instance_counts=[80, 2601, 2])


def test_a_column_that_is_not_its_formula_warns(table: ClassTable) -> None:
    wrong = dict(table.weights, raw=table.weights["raw"] * 1.001)
    changed = ClassTable(table.image_counts, table.instance_counts, wrong, NAMES, "edited.csv")
    with pytest.warns(UserWarning, match="edited.csv: column raw differs"):
        check_table(changed, IMAGES, INSTANCES, num_images=NUM_IMAGES)


def test_number_of_images_is_recovered(table: ClassTable) -> None:
    check = ClassTable(table.image_counts, table.instance_counts, table.weights)
    quiet_check(check, num_images=None)
    without = ClassTable(table.image_counts, table.instance_counts, {"smooth": table.weights["smooth"]})
    assert without.num_images is None
    quiet_check(without, num_images=None)


@pytest.mark.parametrize(
    "text, match",
    [
        ("a,b\n1,2\n", "no class table"),
        ("raw,img_freq,instance_freq\n1.5,3,x\n", "line 2"),
        ("raw,base2,img_freq,instance_freq\n1.5,2,3,4\n1,1,0,0\n", "line 3"),
        ("", "cannot read"),
    ],
)
def test_files_that_are_no_tables(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read_table(tmp_path / "t.csv")


def test_missing_file_and_column(table: ClassTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_table(tmp_path / "no.csv")
    write_table(tmp_path / "t.csv", table, "elab")
    with pytest.raises(UserError, match="base10_obj"):
        read_table(tmp_path / "t.csv").column("base10", "instance")
    with pytest.raises(UserError, match="layout lvis"):
        write_table(tmp_path / "u.csv", read_table(tmp_path / "t.csv"), "lvis")
    assert not (tmp_path / "u.csv").exists()


def test_rows_of_some_classes_in_another_order(table: ClassTable) -> None:
    """A phase knows some of the classes, in the order of their labels."""
    given = {"image_counts": [2, 55], "instance_counts": [2, 80], "ranks": [2, 0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = check_table(table, **given, num_images=NUM_IMAGES, names=["hair drier", "fork"])
    assert rows.tolist() == [2, 0]
    with pytest.raises(UserError, match="another name"):
        check_table(table, **given, names=["hair drier", "person"])
    with pytest.raises(UserError, match="number of classes"):
        check_table(table, **{**given, "ranks": [3, 0]})
