"""The command ``ltpipe``: every stage by hand, and a few tools. What a command needs is imported when it is called."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ltpipe import __version__, command_options
from ltpipe.command_options import experiment_options
from ltpipe.errors import EXIT_CODE, UserError
from ltpipe.pipeline.own_stages import add_own_stages
from ltpipe.pipeline.stage import Stage
from ltpipe.pipeline.stage_options import CHECKPOINT
from ltpipe.pipeline.stages import TABLE
from ltpipe.run.files import write_json
from ltpipe.run.launch import first_to_fail
from ltpipe.run.time_limit import STOPPED, Stopped
from ltpipe.stage_command import check_key, experiment_of, load_formatter, run_stage


class Command(NamedTuple):
    """A command that is no stage.

    Attributes:
        help: What it does.
        options: Adds its options.
        run: Runs it.
    """

    help: str
    options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


def parser() -> ArgumentParser:
    """Return the command line's parser."""
    top = ArgumentParser(
        prog="ltpipe",
        description="Decoupled training of long-tailed instance segmenters: every stage of the pipeline by hand.",
        epilog="The whole chain: `make run` on the toy data, `snakemake --profile local all` for your experiments.",
    )
    top.add_argument("--version", action="version", version=f"ltpipe {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    own = [stage for stage in TABLE.values() if stage.plugin is not None]
    for stage in TABLE.values():
        if stage not in own:
            _stage_options(verbs, stage)
    for name, command in COMMANDS.items():
        command.options(verbs.add_parser(name, help=command.help))
    for stage in own:
        if stage.name in COMMANDS:
            raise UserError("a stage has the name of a command", where=stage.plugin, got=stage.name)
        _stage_options(verbs, stage)
    return top


def _stage_options(verbs: Any, stage: Stage) -> None:
    description = stage.help[:1].upper() + stage.help[1:] + "."
    verb = verbs.add_parser(stage.name, help=stage.help, description=description)
    where = experiment_options(verb)
    if stage.option is not None:
        key = stage.option
        verb.add_argument(
            key.flag, dest=key.name, type=key.kind, required=key.required, metavar=key.name.upper(), help=key.help
        )
    if stage.alternative is not None:
        stage.alternative.add(verb, where)
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
        if arguments.verb in TABLE:
            return run_stage(arguments)
        COMMANDS[arguments.verb].run(arguments)
        return 0
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


def _status(arguments: Namespace) -> None:
    from ltpipe.run.status import print_all, print_status, watch_status

    if not (arguments.experiment or arguments.option):
        print_all(arguments.results)
        return
    (watch_status if arguments.watch else print_status)(*experiment_of(arguments, over_seeds=True))


def _import(arguments: Namespace) -> None:
    from ltpipe.data.import_data import import_data

    report = import_data(arguments.source, arguments.output, fmt=arguments.format, faults=arguments.faults)
    print("\n".join(report))


def _export(arguments: Namespace) -> None:
    exp, paths = experiment_of(arguments)
    check_key(exp, CHECKPOINT, arguments.checkpoint)
    importlib.import_module("ltpipe.interop.export").run(exp, paths, arguments)


def _predict(arguments: Namespace) -> None:
    load_formatter()
    importlib.import_module("ltpipe.stages.predict").run(arguments)


def _recipes(arguments: Namespace) -> None:
    importlib.import_module("ltpipe.pipeline.recipes").print_recipes()


def _of(module: str) -> Callable[[Namespace], None]:
    """Return a command that is the ``run`` of a module."""
    return lambda arguments: importlib.import_module(module).run(arguments)


def _toy_data(arguments: Namespace) -> None:
    if arguments.folder is not None:
        from ltpipe.data.toy import write_toy_data

        write_toy_data(arguments.folder)
        return
    importlib.import_module("ltpipe.stages.toy_data").run(*experiment_of(arguments))


def _make_long_tailed(arguments: Namespace) -> None:
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


def _make_split(arguments: Namespace) -> None:
    from ltpipe.data.train_val import Recipe, make_split, sentences

    recipe = Recipe(arguments.fraction, arguments.seed, arguments.group_by, arguments.group_pattern)
    print("\n".join(sentences(make_split(arguments.annotations, arguments.output, recipe))))


def _schema(arguments: Namespace) -> None:
    from ltpipe.config.json_schema import SCHEMA, experiment_schema, write_schema

    if arguments.write:
        from ltpipe.config.catalogue import FILE, catalogue, described
        from ltpipe.registry import catalogue_content

        write_json(FILE, catalogue_content())
        catalogue.cache_clear()
        described.cache_clear()
        write_schema()
        print(f"wrote {SCHEMA}")
    else:
        print(json.dumps(experiment_schema(), indent=1))


def _methods(arguments: Namespace) -> None:
    from ltpipe.config.catalogue import SLOTS, catalogue

    if arguments.detectors:
        from ltpipe.config.families import as_text

        rows, reasons = as_text()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
        print("\n".join(f"no {number}: {reason}" for number, reason in enumerate(reasons, 1)))
        return
    for slot in SLOTS:
        print(f"{slot}:")
        for (where, name), entry in sorted(catalogue().items()):
            if where != slot:
                continue
            print(f"  {name:20s} {entry.summary}")
            for option, field in entry.options.model_fields.items():
                default = "required" if field.is_required() else repr(field.default)
                print(f"    {option} = {default}  {field.description or ''}")


COMMANDS = {
    "status": Command(
        "what is done, running, failed, stale or waiting, and why; without EXP: all experiments",
        command_options.status_options,
        _status,
    ),
    "toy-data": Command("draw the toy data set", command_options.toy_data_options, _toy_data),
    "make-lt": Command(
        "long-tailed version of a COCO- or LVIS-format data set", command_options.long_tail_options, _make_long_tailed
    ),
    "import": Command(
        "data sets of YOLO, Pascal VOC, Labelme or COCO folders as JSON", command_options.import_options, _import
    ),
    "make-split": Command(
        "training and validation part of one annotation file", command_options.split_options, _make_split
    ),
    "convert": Command(
        "checkpoint or class index of another repository, for our use",
        command_options.convert_options,
        _of("ltpipe.interop.convert_command"),
    ),
    "export": Command(
        "a checkpoint for mmdet 3.x, or detections as JSON",
        partial(command_options.export_options, checkpoint=CHECKPOINT.help),
        _export,
    ),
    "score": Command(
        "detections of any detector to all numbers, tables and a page",
        command_options.score_options,
        _of("ltpipe.stages.score"),
    ),
    "predict": Command(
        "detect objects in any images and videos, with pictures",
        partial(command_options.predict_options, checkpoint=CHECKPOINT.help),
        _predict,
    ),
    "table": Command(
        "results of experiments over their seeds, as Markdown",
        command_options.table_options,
        _of("ltpipe.stages.results_table"),
    ),
    "recipes": Command(
        "experiments with published numbers: hardware, time and disk they take", lambda verb: None, _recipes
    ),
    "schema": Command("JSON schema of experiment files", command_options.schema_options, _schema),
    "methods": Command(
        "what can be chosen in experiments, with all options, or with which kinds of detectors it works",
        command_options.methods_options,
        _methods,
    ),
}
"""The commands that are no stages, in the order of ``--help``."""


if __name__ == "__main__":
    sys.exit(main())
