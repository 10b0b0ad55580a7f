"""Options of the commands, except what the table of stages says of a stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltpipe.frequency import BIN_EDGES


def file_path(text: str) -> Path:
    """A file or folder on the command line.

    Raises:
        argparse.ArgumentTypeError: It is an address: as a path, its two slashes would become one.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"a file is meant, and {text} is an address: download it, name the file")
    return Path(text)


def experiment_options(verb: argparse.ArgumentParser, *, required: bool = True) -> Any:
    """Add the options that name an experiment; return their group, of which one is given."""
    where = verb.add_mutually_exclusive_group(required=required)
    where.add_argument(
        "experiment", nargs="?", metavar="EXP", help="name in configs/experiments, or path of a YAML file"
    )
    where.add_argument("--experiment", dest="option", metavar="EXP", help="the same, as an option")
    results_option(verb)
    return where


def results_option(verb: argparse.ArgumentParser) -> None:
    """Add the folder of results."""
    verb.add_argument("--results", type=file_path, default=Path("results"), metavar="DIR", help="default: %(default)s")


def status_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe status``."""
    experiment_options(verb, required=False)
    verb.add_argument("--watch", action="store_true", help="look again every few seconds")


def methods_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe methods``."""
    verb.add_argument(
        "--detectors", action="store_true", help="a table of methods and kinds of detectors, with reasons"
    )


def toy_data_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe toy-data``."""
    target = verb.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--experiment", dest="option", metavar="EXP", help="draw what the experiment's dataset.generate asks for"
    )
    target.add_argument("--folder", type=file_path, help="draw with the default options into this folder")
    verb.set_defaults(experiment=None)
    results_option(verb)


def schema_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe schema``."""
    verb.add_argument(
        "--write", action="store_true", help="write the generated files: descriptions of the methods and the schema"
    )


def export_options(verb: argparse.ArgumentParser, checkpoint: str) -> None:
    """Add the options of ``ltpipe export``; ``checkpoint`` says which there are."""
    experiment_options(verb)
    verb.add_argument("--checkpoint", required=True, help=checkpoint)
    target = verb.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=file_path, metavar="DIR", help="write config.py and model.pth for mmdet there")
    target.add_argument("--detections", type=file_path, metavar="JSON", help="write the evaluated detections there")
    verb.add_argument("--plain", action="store_true", help="only if mmdet can run it without ltpipe")
    verb.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox", help="of the JSON; default: %(default)s")


def cross_check_options(verb: argparse.ArgumentParser, where: Any) -> None:
    """Add what ``ltpipe evaluate`` can do instead of measuring."""
    verb.add_argument(
        "--cross-check",
        action="store_true",
        help="compute the stored evaluation again with a second engine; every cell must be equal",
    )


def score_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe score``."""
    verb.description = "Measure detections of any framework (JSON results of COCO or LVIS); needs no experiment."
    verb.add_argument(
        "detections", nargs="+", type=file_path, metavar="DETECTIONS", help="results files, shown side by side"
    )
    verb.add_argument(
        "--annotations",
        type=file_path,
        required=True,
        metavar="JSON",
        help="annotations the detections are measured against",
    )
    verb.add_argument(
        "--train",
        type=file_path,
        metavar="JSON",
        help="training annotations, whose counts make frequency groups and bins",
    )
    verb.add_argument(
        "--images", type=file_path, metavar="DIR", help="image folder; every image of the annotations is there"
    )
    verb.add_argument(
        "--output", type=file_path, metavar="DIR", help="write report.html, summary.csv, per_class.csv there"
    )
    verb.add_argument("--protocol", choices=("lvis", "coco"), help="default: lvis for federated annotations, else coco")
    verb.add_argument("--json", type=file_path, metavar="FILE", help="write the numbers there, by file and IoU type")
    verb.add_argument(
        "--iou-types", type=_listed(str), metavar="A,B", help="of bbox, segm, boundary; default: all that a file holds"
    )
    verb.add_argument(
        "--bins", type=_listed(float), default=BIN_EDGES, metavar="A,B", help="edges of the bins; default: 10,100,1000"
    )
    _calibration_options(verb)


def _calibration_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--calibrate",
        type=_listed(str),
        default=(),
        metavar="A,B",
        help="also with scores calibrated on held-out images: platt, temperature, beta, isotonic, histogram",
    )
    verb.add_argument(
        "--calibrate-by",
        choices=("class", "frequency", "overall"),
        default="class",
        help="a function of the score for every class (default), every frequency group, or all",
    )
    verb.add_argument(
        "--calibrate-iou",
        type=float,
        default=0.5,
        metavar="IOU",
        help="least overlap of a right detection; default: 0.5",
    )
    verb.add_argument(
        "--held-out-annotations",
        type=file_path,
        metavar="JSON",
        help="images to fit on, others than those of --annotations; default: half of these, the rest is measured",
    )
    verb.add_argument(
        "--held-out-detections",
        type=file_path,
        nargs="+",
        default=(),
        metavar="JSON",
        help="DETECTIONS, on held-out images",
    )


def pictures_options(verb: argparse.ArgumentParser, where: Any) -> None:
    """Add what ``ltpipe pictures`` takes instead of an experiment; ``where`` is the group of both."""
    where.add_argument(
        "--annotations", type=file_path, metavar="JSON", help="instead of an experiment: any annotations"
    )
    verb.add_argument("--images", type=file_path, metavar="DIR", help="their images")
    verb.add_argument(
        "--detections", nargs="+", type=file_path, metavar="JSON", help="results files; the last one is looked at first"
    )
    verb.add_argument("--train", type=file_path, metavar="JSON", help="annotations whose counts make frequency groups")
    verb.add_argument("--output", type=file_path, metavar="DIR", help="folder to write to, with --annotations")
    verb.add_argument(
        "--megabytes", type=float, default=100, metavar="MB", help="limit of all pages, with --annotations; %(default)s"
    )


def predict_options(verb: argparse.ArgumentParser, checkpoint: str) -> None:
    """Add the options of ``ltpipe predict``; ``checkpoint`` says which there are."""
    verb.description = "Detect objects in any images and videos. Broken files are told of at the end (exit code 2)."
    verb.add_argument("detector", metavar="EXP", help="an experiment, or the folder of an exported detector")
    verb.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, videos, folders of them, patterns such as 'a/**/*.jpg'"
    )
    verb.add_argument("--checkpoint", metavar="NAME", help=f"of the experiment: {checkpoint}")
    verb.add_argument("--output", type=file_path, metavar="DIR", help="default: predictions/EXP.NAME")
    verb.add_argument(
        "--score",
        action="append",
        default=[],
        metavar="S",
        help="least score, 0.3 for all classes (default), or CLASS=0.5; may be given several times",
    )
    verb.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time; default: %(default)s")
    verb.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of backbone, neck and heads: bf16 (also on a CPU) or fp16 (GPU); default: %(default)s",
    )
    verb.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame of videos; default: all")
    verb.add_argument("--no-pictures", action="store_true", help="write no drawn pictures")
    verb.add_argument("--crops", action="store_true", help="write a picture of every object, in a folder per class")
    results_option(verb)


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return what reads values with commas between them."""

    def values(text: str) -> list[Any]:
        return [kind(item) for item in text.split(",")]

    return values


def long_tail_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe make-lt``."""
    verb.add_argument("--annotations", type=file_path, required=True, metavar="JSON", help="annotations to start from")
    verb.add_argument("--output", type=file_path, required=True, metavar="JSON", help="annotations to write")
    verb.add_argument(
        "--counts", type=file_path, metavar="JSON", help="counts per class to reach, e.g. configs/classes/coco_lt.json"
    )
    verb.add_argument(
        "--index",
        type=file_path,
        metavar="PT",
        help="SimCal's class index: keep exactly its images, and verify --counts",
    )
    verb.add_argument("--seed", type=int, default=0, help="seed of the draw; default: %(default)s")


def split_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe make-split``."""
    verb.description = "Part one annotation file by images: every class in both parts where possible."
    verb.add_argument("--annotations", type=file_path, required=True, metavar="JSON", help="COCO- or LVIS-format file")
    verb.add_argument(
        "--output", type=file_path, required=True, metavar="DIR", help="write train.json and val.json there"
    )
    verb.add_argument(
        "--fraction", type=float, default=0.2, help="share of the images that validate; default: %(default)s"
    )
    verb.add_argument("--seed", type=int, default=0, help="seed of the draw; default: %(default)s")
    verb.add_argument(
        "--group-by", metavar="KEY", help="key of image records, e.g. video_id: images of one value stay together"
    )
    verb.add_argument(
        "--group-pattern", metavar="REGEX", help="compare what it finds in that value only, e.g. '^[^/]+' (a folder)"
    )


def import_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe import``."""
    verb.description = "Write a data set of YOLO, Pascal VOC, Labelme or COCO folders as COCO- or LVIS-format JSON."
    verb.add_argument(
        "source", type=file_path, metavar="SOURCE", help="folder of the data set, or its data.yaml or annotation file"
    )
    verb.add_argument("--output", type=file_path, required=True, metavar="DIR", help="write a JSON file per part there")
    verb.add_argument("--format", choices=("yolo", "voc", "labelme", "coco"), help="default: the one that it is")
    verb.add_argument(
        "--faults",
        choices=("refuse", "drop"),
        default="refuse",
        help="records that cannot be used: refuse, or leave out and count; default: %(default)s",
    )


def convert_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe convert``."""
    verb.add_argument(
        "files",
        nargs="+",
        type=file_path,
        metavar="FILE",
        help="a checkpoint; several: calibrated heads of a cascade, in order",
    )
    verb.add_argument("--output", type=file_path, required=True, metavar="FILE", help="file to write")
    verb.add_argument("--source", metavar="NAME", help="layout, see docs/convert.md; default: from the keys")
    of_classes = verb.add_mutually_exclusive_group()
    of_classes.add_argument(
        "--classes", type=file_path, metavar="LIST", help="class list (JSON) or statistics.csv of its training data"
    )
    of_classes.add_argument("--init", action="store_true", help="only to start a training: without layers of classes")
    verb.add_argument(
        "--ignore-names", action="store_true", help="take the list's order, whatever class names the checkpoint stores"
    )
    verb.add_argument("--loss", metavar="NAME", help="model.loss.type, where the weights do not show it")
    verb.add_argument("--classifier", metavar="NAME", help="model.classifier.type, likewise")
    verb.add_argument("--temperature", type=float, metavar="T", help="of a normalised classifier")
    verb.add_argument("--mask", metavar="NAME", help="model.mask.type, likewise")
    verb.add_argument("--variant", metavar="NAME", help="column of IIF's tables, e.g. raw or base10_obj")
    verb.add_argument("--groups", type=file_path, metavar="PT", help="label2binlabel.pt of a BAGS classifier")
    verb.add_argument("--annotations", type=file_path, metavar="JSON", help="annotations that a class index belongs to")


def table_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of ``ltpipe table``."""
    verb.description = (
        "Mean and 95 % interval over seeds, time, what each needs, machine and commit, as a Markdown table."
    )
    verb.add_argument("experiments", nargs="*", metavar="EXP", help="experiments, with seeds or without")
    verb.add_argument("--iou-type", choices=("bbox", "segm", "boundary"), default="segm", help="default: %(default)s")
    verb.add_argument("--set", dest="part", default="val", metavar="SET", help="test set; default: validation images")
    numbers = ("AP", "APr", "APc", "APf", "AP_fixed")
    verb.add_argument("--metrics", nargs="+", default=numbers, help=f"numbers; default: {' '.join(numbers)}")
    text = "also the difference of AP to this checkpoint of the same experiment, seed by seed"
    verb.add_argument("--against", metavar="CHECKPOINT", help=text)
    text = (
        "make the tables in these files anew: each between a line <!-- ltpipe table EXP ... -->, with the arguments of "
        "this command, and a line <!-- end of table -->"
    )
    verb.add_argument("--into", nargs="+", type=Path, metavar="FILE", help=text)
    results_option(verb)
