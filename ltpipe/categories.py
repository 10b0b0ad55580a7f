"""Which classes a file or a checkpoint knows, and how two of them are matched: by category id and name, never by one.

Checkpoints carry them in label order under ``meta``: ``category_ids`` (list of int) and, where mmdet looks for it,
``dataset_meta["classes"]`` (tuple of names).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ltpipe.errors import UserError

SHOWN = 5
ONE_LIST = "give all files of a data set one common category list; the order does not matter"


class HasCategories(Protocol):
    """An annotation store, or ground truth read from JSON."""

    @property
    def category_ids(self) -> Any:
        """``(C,) int64``."""

    @property
    def category_names(self) -> Sequence[str]:
        """``C`` names."""


@dataclass(frozen=True)
class Categories:
    """Classes in label order.

    Attributes:
        ids: Category ids.
        names: Their names.
        source: What knows them, for messages: ``"the training annotations"``.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    source: str

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]], source: str) -> Categories:
        """Return the classes of records with ``id`` and ``name``, as in annotation files and class lists.

        Raises:
            UserError: An id is no whole number.
        """
        try:
            pairs = [(int(record["id"]), str(record["name"])) for record in records]
        except (TypeError, ValueError) as error:
            raise UserError("a category id is no whole number", where=source, got=error) from error
        return cls(tuple(i for i, _ in pairs), tuple(name for _, name in pairs), source)

    @classmethod
    def of_store(cls, store: HasCategories, source: str) -> Categories:
        """Return the classes of annotations, in file order."""
        return cls(tuple(int(i) for i in store.category_ids), tuple(store.category_names), source)

    @classmethod
    def of_checkpoint(cls, meta: Mapping[str, Any], source: str) -> Categories | None:
        """Return what a checkpoint's ``meta`` says; None if it has no category ids.

        Raises:
            UserError: It has ids without names (made before ltpipe wrote them), or numbers of both that differ.
        """
        ids, names = meta.get("category_ids"), stored_names(meta)
        if ids is None:
            return None
        if names is None or len(names) != len(ids):
            raise UserError(
                "the checkpoint does not say what its classes are called", where=source,
                got=f"{len(ids)} category ids, {'no' if names is None else len(names)} names in meta",
                fix="make it again: run `ltpipe convert --classes` or the stage that wrote it with this version",
            )  # fmt: skip
        return cls(tuple(int(i) for i in ids), names, source)

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint's ``meta`` says of its classes."""
        return {"category_ids": list(self.ids), "dataset_meta": {"classes": tuple(self.names)}}

    def take(self, ids: Iterable[int], source: str) -> Categories:
        """Return the classes with these ids, in this order.

        Raises:
            UserError: An id is not there.
        """
        names, chosen = dict(self.pairs()), tuple(int(i) for i in ids)
        missing = [i for i in chosen if i not in names]
        if missing:
            raise UserError(
                f"{source} knows classes that {self.source} do not", got=f"category ids {missing[:SHOWN]}",
                fix="run the stages from `index` on again",
            )  # fmt: skip
        return Categories(chosen, tuple(names[i] for i in chosen), source)

    def pairs(self) -> list[tuple[int, str]]:
        """Return id and name of every class, in label order."""
        return list(zip(self.ids, self.names, strict=True))


def stored_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in a checkpoint's ``meta``, in label order: mmdet 3.x, or 1.x and 2.x; None without."""
    inner = meta.get("dataset_meta")
    places = ((inner, "classes"), (inner, "CLASSES"), (meta, "CLASSES"))
    for place, key in places:
        names = place.get(key) if isinstance(place, Mapping) else None
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def labels_in(known: Categories, wanted: Categories, *, where: object, fix: str, part: bool = False) -> list[int]:
    """Return the label that each wanted class has in ``known``; both must list the same classes, in any order.

    Args:
        known: Classes of a checkpoint, say.
        wanted: Those of the data.
        where: File and key, for the error.
        fix: The way out if they differ.
        part: ``known`` may have further classes.

    Raises:
        UserError: An id has another name, a name another id, or a class is only in one of the two.
    """
    found = list(differences(known, wanted, part=part))
    if found:
        more = "; ..." if len(found) > SHOWN else ""
        raise UserError(
            f"the classes of {known.source} are not those of {wanted.source}",
            where=where,
            got=f"{len(known.ids)} classes, {len(found)} differ: {'; '.join(found[:SHOWN])}{more}",
            allowed=f"the same ids and names, {len(wanted.ids)} classes",
            fix=fix,
        )
    place = {pair: label for label, pair in enumerate(known.pairs())}
    return [place[pair] for pair in wanted.pairs()]


def check_labels(meta: Mapping[str, Any], wanted: Categories, where: object) -> None:
    """Refuse a checkpoint of the experiment itself whose labels mean other classes than the data say now.

    Args:
        meta: The checkpoint's facts; without names, as written before ltpipe stored them, the ids are compared.
        wanted: The classes it must know, in label order.
        where: The checkpoint, for the error.

    Raises:
        UserError: It knows other classes, or has them in another order.
    """
    ids, called = tuple(int(i) for i in meta.get("category_ids", ())), dict(wanted.pairs())
    names = stored_names(meta) or tuple(called.get(i, "") for i in ids)
    fix = "run the stage that made it again: annotations or split have changed since"
    if labels_in(Categories(ids, names, "the checkpoint"), wanted, where=where, fix=fix) != list(range(len(ids))):
        raise UserError("the checkpoint has its classes in another order than the split", where=where, fix=fix)


def differences(known: Categories, wanted: Categories, *, part: bool = False) -> Iterator[str]:
    """Yield what differs between two lists of classes, class by class; ``part``: ``known`` may have further ones."""
    names, ids = dict(known.pairs()), {name: i for i, name in known.pairs()}
    own = set(known.pairs())
    other = [pair for pair in wanted.pairs() if pair not in own]
    for i, name in other:
        if i in names:
            yield f"id {i} is {names[i]!r} in {known.source}, {name!r} in {wanted.source}"
        elif name in ids:
            yield f"{name!r} has id {ids[name]} in {known.source}, {i} in {wanted.source}"
        else:
            yield f"{name!r} (id {i}) is not in {known.source}"
    told, there = {name for _, name in other}, set(wanted.ids)
    for i, name in [] if part else known.pairs():
        if i not in there and name not in told:
            yield f"{name!r} (id {i}) is not in {wanted.source}"
