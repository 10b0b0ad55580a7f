"""Pages of the site that are made from the code when it is built: options, methods, commands, stages and numbers.

A hook of MkDocs (``hooks`` in ``mkdocs.yml``); nothing it makes is committed, so nothing of it can be out of date. It
imports the side of ltpipe that needs no torch.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from ltpipe import cli
from ltpipe.config import catalogue
from ltpipe.config.experiment import Experiment
from ltpipe.config.json_schema import experiment_schema
from ltpipe.metrics.table import METRICS
from ltpipe.pipeline.stages import TABLE

ROOT = Path(__file__).parents[1]
Schema = dict[str, Any]
SLOTS = {
    "classifier": "Classifiers: `model.classifier`",
    "loss": "Losses: `model.loss`",
    "mask": "Mask heads: `model.mask`",
    "part": "Parts of the head: `model.parts`",
    "calibrator": "Calibrators: `calibrate.<name>`",
    "sampler": "Samplers of images: `base.sampler`",
}
EXAMPLES = yaml.safe_load(Path(__file__).with_name("examples.yaml").read_text(encoding="utf-8"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site (MkDocs calls this)."""
    pages = {
        "reference/configuration.md": configuration(),
        "reference/methods.md": methods(),
        "reference/commands.md": commands(),
        "reference/stages.md": stages(),
        "reference/metrics.md": metrics(),
        "contributing.md": copied("CONTRIBUTING.md"),
        "changelog.md": copied("CHANGELOG.md"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def copied(name: str) -> str:
    """A page at the root of the repository, whose links to ``docs/`` stay links of the site."""
    return re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))


def cell(text: object) -> str:
    """Text as it may stand in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def code(value: object) -> str:
    """A value as YAML writes it in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("\n...\n").strip()
    return f"`{text}`"


# ---- the keys of experiments ----------------------------------------------------------------------------------------


def configuration() -> str:
    """Every key of an experiment file, from the models that read it."""
    lines = [
        "# Keys of experiments",
        "",
        "Made from the models that read experiment files, so it is complete. What `extends` and `null` do, and where "
        "files are looked for: [Experiment files](../configuration.md). All keys exist since 0.1.0.",
        "",
        "Required keys have no default. Options of methods (`model.loss`, `calibrate.<name>`, ...) are on the page "
        "[Methods](methods.md).",
    ]
    schema = experiment_schema()
    blocks = schema["$defs"]
    lines += block("", schema, Experiment, blocks, level=2)
    return "\n".join(lines) + "\n"


def block(key: str, schema: Schema, model: type[BaseModel], blocks: Schema, level: int) -> list[str]:
    """A table of one block, then those of the blocks in it."""
    title = f"`{key}`" if key else "The whole file"
    lines = ["", f"{'#' * min(level, 5)} {title}", "", one_line(model.__doc__ or ""), ""]
    lines += ["| key | value | default | meaning | example |", "|---|---|---|---|---|"]
    inner, own = [], model.model_json_schema()
    for name, field in model.model_fields.items():
        found = schema["properties"].get(name) or own["properties"][name]
        default = "required" if field.is_required() else shown_default(field.get_default(call_default_factory=True))
        nested = nested_model(field.annotation)
        path = f"{key}.{name}" if key else name
        path = f"{path}.<name>" if path == "calibrate" else path
        example = found_example(path) if nested is None else f"[below](#{anchor(path)})"
        text = cell(field.description or "")
        lines.append(f"| `{name}` | {cell(kind(found, blocks))} | {default} | {text} | {cell(example)} |")
        if nested is not None:
            inner.append((path, nested))
    if not key:
        lines.insert(
            lines.index("|---|---|---|---|---|") + 1,
            "| `extends` | text | none | parent experiment, relative to this file or anywhere below "
            "`configs/experiments` | `toy_joint.yaml` |",
        )
    for path, nested in inner:
        found = blocks[nested.__name__]
        lines += block(path, found if "properties" in found else {"properties": {}}, nested, blocks, level + 1)
    return lines


def anchor(path: str) -> str:
    """The anchor that Markdown gives a heading which is this key."""
    return re.sub(r"[^\w-]", "", path.lower())


def one_line(text: str) -> str:
    """The first paragraph of a docstring, as Markdown."""
    first = re.sub(r":\w+:`~?(?:ltpipe\.[\w.]*\.)?([^`]+)`", r"`\1`", text.strip().split("\n\n")[0])
    return re.sub(r"\s+", " ", first).replace("``", "`")


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The block that a key holds, if it is one of a fixed shape."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for one in candidates:
        for model in (one, *getattr(one, "__args__", ())):
            if isinstance(model, type) and issubclass(model, BaseModel) and model.__name__ != "Choice":
                return model
    return None


def shown_default(value: Any) -> str:
    """A default in a cell."""
    if isinstance(value, BaseModel):
        name = getattr(value, "type", None)
        return f"`{{type: {name}}}`" if name else "its defaults"
    plain = json.loads(json.dumps(value, default=lambda one: str(one)))
    return cell(code(plain))


def kind(schema: Schema, blocks: Schema) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        words = dict.fromkeys(kind(one, blocks) for one in schema["anyOf"])
        methods = [word for word in words if word == "a method"]
        return "a method" if methods else " or ".join(word for word in words if word != "null") or "null"
    if "$ref" in schema:
        return "block"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("properties", {}).get("type", {}).get("const"):
        return "a method"
    if schema.get("type") == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {kind(items, blocks)}"
    if schema.get("type") == "object":
        return "mapping"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema]
    return " ".join([words.get(schema.get("type", ""), schema.get("type", "anything")), *bounds])


BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


@cache
def shipped() -> dict[str, Any]:
    """Values that the shipped experiments give, by key path, the shortest file first."""
    found: dict[str, Any] = {}
    for file in sorted((ROOT / "configs" / "experiments").rglob("*.yaml"), key=lambda f: (f.stat().st_size, f.name)):
        for path, value in flat(yaml.safe_load(file.read_text(encoding="utf-8"))):
            if value is not None:
                found.setdefault(path, value)
    return found


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of a file, those of mappings too."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{'<name>' if prefix == 'calibrate.' else key}.")


def found_example(path: str) -> str:
    """An example of a key."""
    name = path.rpartition(".")[2]
    if path in shipped():
        return code(shipped()[path])
    last = [value for key, value in shipped().items() if key.rpartition(".")[2] == name]
    return code(EXAMPLES[name] if name in EXAMPLES else last[0])


# ---- methods --------------------------------------------------------------------------------------------------------


def methods() -> str:
    """Every method with its paper, its equation, its options and the published numbers, from code and configs."""
    documents, published = method_documents(), published_rows()
    lines = [
        "# Methods",
        "",
        "Everything that an experiment can choose by name, from the docstrings of the modules that compute it "
        "(`ltpipe/methods`). Published numbers are those of the shipped recipes: what their sources report, "
        "not results of this project. `ltpipe methods` prints the options in a terminal.",
    ]
    shown: set[str] = set()
    for slot, title in SLOTS.items():
        lines += ["", f"## {title}"]
        for (where, name), entry in sorted(catalogue.catalogue().items()):
            if where != slot:
                continue
            lines += ["", f"### {name} {{ #{slot}-{name} }}", "", one_line(entry.summary)]
            module, text = documents.get((slot, name), ("", ""))
            if text and module in shown:
                lines += ["", f"Paper and equations: module `{module}`, above."]
            elif text:
                shown.add(module)
                lines += ["", *(f"> {line}".rstrip() for line in markdown(text).splitlines()), "", f"`{module}`"]
            lines += options(entry.options)
            lines += published.get((slot, name), [])
    return "\n".join(lines) + "\n"


def markdown(text: str) -> str:
    """A docstring as Markdown: double backticks are code, roles are names."""
    text = re.sub(r":\w+:`~?(?:ltpipe\.[\w.]*\.)?([^`]+)`", r"`\1`", text)
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text.replace("::\n", ":\n"))


def method_documents() -> dict[tuple[str, str], tuple[str, str]]:
    """Module and docstring by slot and name."""
    found = {}
    for file in sorted((ROOT / "ltpipe" / "methods").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            for mark in node.decorator_list if isinstance(node, ast.ClassDef) else []:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "method":
                    slot, name = (ast.literal_eval(one) for one in mark.args[:2])
                    module = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
                    found[slot, name] = (module, ast.get_docstring(tree) or "")
    return found


def options(model: type[BaseModel]) -> list[str]:
    """The options of a method as a table."""
    if not model.model_fields:
        return ["", "No options."]
    lines = ["", "| option | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else shown_default(field.default)
        lines.append(f"| `{name}` | {default} | {cell(one_line(field.description or ''))} |")
    return lines


def published_rows() -> dict[tuple[str, str], list[str]]:
    """The published numbers of the shipped experiments that choose a method, as a table."""
    chosen = chosen_methods()
    tables: dict[tuple[str, str], list[str]] = {}
    for file in sorted((ROOT / "configs" / "published").glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                if row["metric"] not in ("AP", "APr", "bAP"):
                    continue
                cells = (
                    f"`{row['experiment']}`",
                    row["checkpoint"],
                    f"{row['iou_type']} {row['metric']}",
                    row["value"],
                )
                line = f"| {' | '.join(cells)} | {cell(row['source'])} |"
                for method in chosen.get(row["experiment"], []):
                    if method[0] != "calibrator" or method[2] == row["checkpoint"]:
                        tables.setdefault(method[:2], []).append(line)
    head = ["", "| experiment | checkpoint | number | published | source |", "|---|---|---|---|---|"]
    return {key: [*head, *dict.fromkeys(rows)] for key, rows in tables.items()}


@cache
def chosen_methods() -> dict[str, list[tuple[str, str, str]]]:
    """What each shipped experiment chooses itself, without its parents: slot, name, its own name of a calibrator."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for file in (ROOT / "configs" / "experiments").rglob("*.yaml"):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        model = values.get("model") or {}
        picked = [(slot, model.get(slot), "") for slot in ("classifier", "loss", "mask")]
        picked += [("part", part, "") for part in model.get("parts") or []]
        picked += [("sampler", (values.get("base") or {}).get("sampler"), "")]
        picked += [("calibrator", one, name) for name, one in (values.get("calibrate") or {}).items()]
        found[file.stem] = [(slot, one["type"], name) for slot, one, name in picked if one and "type" in one]
    return found


# ---- commands, stages, numbers --------------------------------------------------------------------------------------


def commands() -> str:
    """The help texts of the command line."""
    top = cli.parser()
    actions = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help for choice in actions[0]._choices_actions}
    lines = ["# Commands", "", "`ltpipe COMMAND --help` prints the same."]
    for name, verb in actions[0].choices.items():
        verb.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        lines += ["", f"## ltpipe {name}", "", f"{helps[name]}.", "", "```text", verb.format_help().strip(), "```"]
    return "\n".join(lines) + "\n"


def stages() -> str:
    """The table of stages."""
    lines = ["# Stages", "", "In the order of the chain; [Concepts](../concepts.md) says how they fit together.", ""]
    lines += ["| stage | what it does | key | resumes | in several processes |", "|---|---|---|---|---|"]
    for stage in TABLE.values():
        key = f"`{stage.option.flag}`" if stage.option is not None else ""
        marks = ["yes" if one else "" for one in (stage.resumes, stage.in_processes)]
        lines.append(f"| `{stage.name}` | {cell(stage.help)} | {key} | {marks[0]} | {marks[1]} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every number of ``metrics.json``, from the table that computes them."""
    lines = ["# Numbers", "", "Every name in `metrics.json`. How to read them: [Metrics explained](../metrics.md).", ""]
    lines += ["| name | of | definition |", "|---|---|---|"]
    lines += [f"| `{one.key}` | {cell(one.title)} | {cell(one.meaning)} |" for one in METRICS]
    return "\n".join(lines) + "\n"
