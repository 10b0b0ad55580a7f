"""The command ``ltpipe``: every stage by hand, and a few tools. Stages are imported when they are called."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltpipe import __version__
from ltpipe.command_options import (
    convert_options,
    import_options,
    long_tail_options,
    pictures_options,
    predict_options,
    score_options,
    split_options,
)
from ltpipe.config.experiment import Experiment
from ltpipe.errors import EXIT_CODE, UserError, unknown_name
from ltpipe.pipeline.own_stages import add_own_stages
from ltpipe.pipeline.stage import Option, Stage
from ltpipe.pipeline.stages import CHECKPOINT, TABLE
from ltpipe.run.files import write_json
from ltpipe.run.launch import first_to_fail, join
from ltpipe.run.time_limit import Stopped, set_deadline

STOPPED = 75


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(
        prog="ltpipe",
        description="Decoupled training of long-tailed instance segmenters: every stage of the pipeline by hand.",
        epilog="The whole chain: `make run` on the toy data, `snakemake --profile local all` for your experiments.",
    )
    top.add_argument("--version", action="version", version=f"ltpipe {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for stage in TABLE.values():
        if stage.plugin is None:
            _stage_options(verbs, stage)
    status = verbs.add_parser(
        "status", help="what is done, running, failed, stale or waiting, and why; without EXP: all experiments"
    )
    _experiment(status, required=False)
    status.add_argument("--watch", action="store_true", help="look again every few seconds")
    toy = verbs.add_parser("toy-data", help="draw the toy data set")
    target = toy.add_mutually_exclusive_group(required=True)
    target.add_argument("--experiment", metavar="EXP", help="draw what the experiment's dataset.generate asks for")
    target.add_argument("--folder", type=Path, help="draw with the default options into this folder")
    _results(toy)
    long_tail_options(verbs.add_parser("make-lt", help="long-tailed version of a COCO- or LVIS-format data set"))
    import_options(verbs.add_parser("import", help="data sets of YOLO, Pascal VOC, Labelme or COCO folders as JSON"))
    split_options(verbs.add_parser("make-split", help="training and validation part of one annotation file"))
    convert_options(verbs.add_parser("convert", help="checkpoint or class index of another repository, for our use"))
    _export_options(verbs.add_parser("export", help="a checkpoint for mmdet 3.x, or detections as JSON"))
    score_options(verbs.add_parser("score", help="detections of any detector to all numbers, tables and a page"))
    predict = verbs.add_parser("predict", help="detect objects in any images and videos, with pictures")
    predict_options(predict, CHECKPOINT.help)
    _results(predict)
    verbs.add_parser("recipes", help="experiments with published numbers: hardware, time and disk they take")
    schema = verbs.add_parser("schema", help="JSON schema of experiment files")
    schema.add_argument(
        "--write", action="store_true", help="write the generated files: descriptions of the methods and the schema"
    )
    verbs.add_parser("methods", help="what can be chosen in experiments, with all options")
    for stage in TABLE.values():
        if stage.plugin is not None:
            if stage.name in verbs.choices:
                raise UserError("a stage has the name of a command", where=stage.plugin, got=stage.name)
            _stage_options(verbs, stage)
    return top


def _stage_options(verbs: Any, stage: Stage) -> None:
    description = stage.help[:1].upper() + stage.help[1:] + "."
    verb = verbs.add_parser(stage.name, help=stage.help, description=description)
    where = _experiment(verb)
    if stage.name == "pictures":
        pictures_options(verb, where)
    if stage.option is not None:
        key = stage.option
        verb.add_argument(
            key.flag, dest=key.name, type=key.kind, required=key.required, metavar=key.name.upper(), help=key.help
        )
    if stage.name == "evaluate":
        verb.add_argument(
            "--cross-check",
            action="store_true",
            help="compute the stored evaluation again with a second engine; every cell must be equal",
        )
    if stage.resumes:
        verb.add_argument(
            "--fresh", action="store_true", help="start anew instead of continuing where a killed run stopped"
        )
    if stage.in_processes:
        share = "" if stage.shares_images else " that can share a batch"
        text = f"processes per node, one per GPU; default: all visible GPUs{share}"
        verb.add_argument("--processes", type=int, metavar="N", help=text)
    if stage.batch_size is not None:
        verb.add_argument(
            "--time-limit",
            type=float,
            metavar="MINUTES",
            help="save the state and stop in time; default: what is left of the Slurm job, if this is one",
        )


def _export_options(verb: argparse.ArgumentParser) -> None:
    _experiment(verb)
    verb.add_argument("--checkpoint", required=True, help=CHECKPOINT.help)
    target = verb.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, metavar="DIR", help="write config.py and model.pth for mmdet there")
    target.add_argument("--detections", type=Path, metavar="JSON", help="write the evaluated detections there")
    verb.add_argument("--plain", action="store_true", help="only if mmdet can run it without ltpipe")
    verb.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox", help="of the JSON; default: %(default)s")


def _experiment(verb: argparse.ArgumentParser, *, required: bool = True) -> Any:
    """Add the options that name an experiment; return their group, of which one is given."""
    where = verb.add_mutually_exclusive_group(required=required)
    where.add_argument(
        "experiment", nargs="?", metavar="EXP", help="name in configs/experiments, or path of a YAML file"
    )
    where.add_argument("--experiment", dest="option", metavar="EXP", help="the same, as an option")
    _results(verb)
    return where


def _results(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        Exit code: 0, or 2 after a mistake that the user can mend, 75 when a training stopped before its time limit or
        at SIGTERM, or 130 after an interrupt.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        add_own_stages()
        arguments = parser().parse_args(given)
    except UserError as error:
        print(f"ltpipe: {error}", file=sys.stderr)
        return EXIT_CODE
    arguments.given = given
    logging.raiseExceptions = False  # a full disk is reported by the stage, not again for every line of a log file
    try:
        return _dispatch(arguments)
    except UserError as error:
        if first_to_fail(EXIT_CODE, error):
            print(f"ltpipe {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_CODE
    except Stopped as stop:
        first_to_fail(STOPPED)  # the other processes lose their connection now, which is no error to tell of
        print(f"ltpipe {arguments.verb}: {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print(f"ltpipe {arguments.verb}: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception:
        if first_to_fail(1):
            raise
        return 1


def _dispatch(arguments: argparse.Namespace) -> int:
    verb = arguments.verb
    if verb == "schema":
        _schema(write=arguments.write)
    elif verb == "methods":
        _methods()
    elif verb == "toy-data":
        _toy_data(arguments)
    elif verb == "recipes":
        importlib.import_module("ltpipe.pipeline.recipes").print_recipes()
    elif verb == "convert":
        importlib.import_module("ltpipe.interop.convert_command").run(arguments)
    elif verb == "score":
        importlib.import_module("ltpipe.stages.score").run(arguments)
    elif verb == "status" and not (arguments.experiment or arguments.option):
        importlib.import_module("ltpipe.run.status").print_all(arguments.results)
    elif verb == "pictures" and arguments.annotations is not None:
        importlib.import_module("ltpipe.stages.pictures_of_files").run(arguments)
    elif verb == "predict":
        _load_formatter()
        importlib.import_module("ltpipe.stages.predict").run(arguments)
    elif verb == "make-lt":
        _make_long_tailed(arguments)
    elif verb == "make-split":
        _make_split(arguments)
    elif verb == "import":
        from ltpipe.data.import_data import import_data

        report = import_data(arguments.source, arguments.output, fmt=arguments.format, faults=arguments.faults)
        print("\n".join(report))
    else:
        return _stage(verb, arguments)
    return 0


def _stage(verb: str, arguments: argparse.Namespace) -> int:
    from ltpipe.config.loading import load_experiment
    from ltpipe.pipeline.paths import Paths
    from ltpipe.run.stage_lock import AlreadyRunning, is_done

    exp = load_experiment(arguments.experiment or arguments.option)
    paths = Paths(arguments.results, exp)
    if verb == "export":
        _check_key(exp, CHECKPOINT, arguments.checkpoint)
        importlib.import_module("ltpipe.interop.export").run(exp, paths, arguments)
        return 0
    if verb == "status":
        from ltpipe.run.status import print_status, watch_status

        (watch_status if arguments.watch else print_status)(exp, paths)
        return 0
    keys: dict[str, Any] = {}
    stage = TABLE[verb]
    if stage.option is not None:
        name = stage.option.name
        keys[name] = getattr(arguments, name)
        if keys[name] is not None:
            _check_key(exp, stage.option, keys[name])
    owner = exp.owners.get((verb, next(iter(keys.values()), None) or None)) if None not in keys.values() else None
    if owner is not None:
        print(f"{exp.name} takes this stage from {owner}, where it runs")
        exp = exp.beside(owner)
        paths = Paths(arguments.results, exp)
    if verb == "evaluate" and arguments.cross_check:
        from ltpipe.metrics.cross_check import cross_check

        checkpoint = arguments.checkpoint
        for line in cross_check(paths.store("val"), paths.predictions(checkpoint), paths.tensors(checkpoint)):
            print(line)
        return 0
    join()
    launched = "WORLD_SIZE" in os.environ
    if stage.resumes and arguments.fresh and not launched:
        from ltpipe.run.stage_run import forget

        forget(verb, paths.folder(verb, *keys.values()))
    if not launched and is_done(exp, paths, verb, keys, fresh=getattr(arguments, "fresh", False)):
        return 0
    if stage.batch_size is not None:
        set_deadline(arguments.time_limit)
    batch_size = None if stage.batch_size is None else stage.batch_size(exp)
    if not launched and (batch_size is not None or stage.shares_images):
        code = _launch(arguments, batch_size, paths.folder(verb, *keys.values()))
        if code is not None:
            return code
    if stage.torch:
        _load_formatter()
    run = importlib.import_module(stage.module or f"ltpipe.stages.{verb}").run
    try:
        run(exp, paths, **keys)
    except AlreadyRunning:
        if launched:
            raise
        # Both were started at the same moment, and the other one was faster.
        if not is_done(exp, paths, verb, keys):
            run(exp, paths, **keys)
    return 0


def _launch(arguments: argparse.Namespace, batch_size: int | None, folder: Path) -> int | None:
    """Run a stage in several processes, which share a batch if there is one; None if it shall run in this one."""
    from ltpipe.run.launch import launch, launch_on_nodes, processes_for
    from ltpipe.run.slurm import nodes as nodes_of_job

    nodes = nodes_of_job()
    processes = processes_for(batch_size, nodes) if arguments.processes is None else arguments.processes
    if nodes > 1:
        code = launch_on_nodes(arguments.given, nodes, processes, folder)
        if code == STOPPED:  # below what srun has said
            print(f"ltpipe {arguments.verb}: stopped; the next attempt continues", file=sys.stderr)
        return code
    return launch(arguments.given, processes) if processes > 1 else None


def _load_formatter() -> None:
    """Import yapf, which mmengine needs, even while another process writes yapf's cache.

    At its first use yapf writes its parsed grammar into the user's cache folder, in place: of several jobs that start
    at once on a fresh installation, some would read it half-written and fail.
    """
    for _ in range(40):
        try:
            importlib.import_module("yapf.yapflib.yapf_api")
            return
        except (EOFError, pickle.UnpicklingError):
            time.sleep(0.5)


def _check_key(exp: Experiment, option: Option, key: str | int) -> None:
    """Refuse a phase, calibrator or checkpoint that the experiment does not have."""
    allowed = option.allowed(exp)
    if key in allowed:
        return
    if option.kind is str:
        raise unknown_name(option.what, str(key), map(str, allowed), where=option.flag)
    possible = f"{allowed[0]} to {allowed[-1]}" if exp.incremental else "none: the experiment is one-shot"
    raise UserError(f"no such {option.what}", where=option.flag, got=key, allowed=possible)


def _toy_data(arguments: argparse.Namespace) -> None:
    if arguments.folder is not None:
        from ltpipe.data.toy import write_toy_data

        write_toy_data(arguments.folder)
        return
    from ltpipe.config.loading import load_experiment
    from ltpipe.pipeline.paths import Paths

    exp = load_experiment(arguments.experiment)
    importlib.import_module("ltpipe.stages.toy_data").run(exp, Paths(arguments.results, exp))


def _make_long_tailed(arguments: argparse.Namespace) -> None:
    from ltpipe.data.long_tail import make_long_tailed, read_targets
    from ltpipe.data.readers.coco import read_categories
    from ltpipe.interop.class_index import by_category, read_class_index
    from ltpipe.run.outputs import Output

    if arguments.counts is None and arguments.index is None:
        raise UserError("nothing says how long the tail is", where="make-lt", fix="give --counts, --index or both")
    # Once more below, but reading takes minutes.
    Output(arguments.output, "make-lt", inputs=[arguments.annotations, arguments.counts, arguments.index])
    listed = None
    if arguments.index is not None:
        categories = [category.id for category in read_categories(arguments.annotations)]
        listed = by_category(read_class_index(arguments.index), categories, arguments.index)
    targets = read_targets(arguments.counts) if arguments.counts is not None else []
    record = make_long_tailed(arguments.annotations, arguments.output, targets, seed=arguments.seed, listed=listed)
    print(f"{arguments.output}: {record['images']} images, {record['annotations']} annotations, {record['sha256']}")


def _make_split(arguments: argparse.Namespace) -> None:
    from ltpipe.data.train_val import Recipe, make_split, sentences

    recipe = Recipe(arguments.fraction, arguments.seed, arguments.group_by, arguments.group_pattern)
    print("\n".join(sentences(make_split(arguments.annotations, arguments.output, recipe))))


def _schema(*, write: bool) -> None:
    from ltpipe.config.json_schema import SCHEMA, experiment_schema, write_schema

    if write:
        from ltpipe.config.catalogue import FILE, catalogue, described
        from ltpipe.registry import catalogue_content

        write_json(FILE, catalogue_content())
        catalogue.cache_clear()
        described.cache_clear()
        write_schema()
        print(f"wrote {SCHEMA}")
    else:
        print(json.dumps(experiment_schema(), indent=1))


def _methods() -> None:
    from ltpipe.config.catalogue import SLOTS, catalogue

    for slot in SLOTS:
        print(f"{slot}:")
        for (where, name), entry in sorted(catalogue().items()):
            if where != slot:
                continue
            print(f"  {name:20s} {entry.summary}")
            for option, field in entry.options.model_fields.items():
                default = "required" if field.is_required() else repr(field.default)
                print(f"    {option} = {default}  {field.description or ''}")


if __name__ == "__main__":
    sys.exit(main())
