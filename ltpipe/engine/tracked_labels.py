"""Labels that know which annotations they belong to, through transforms that drop, reorder and combine objects.

Transforms keep boxes, labels and masks side by side by indexing and concatenating them alike. What is told to the array
of labels therefore follows the objects through any of them, of mmdet or not, and the labels stay plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_JOINING = (np.concatenate, np.hstack)


class TrackedLabels(np.ndarray[Any, Any]):
    """``(G,)`` int64 labels with one row of tags each. Other operations than indexing and joining lose the tags.

    Attributes:
        tags: ``(G, 2)`` int64: annotation id, and 1 where the object has a mask; None: lost.
    """

    tags: np.ndarray[Any, Any] | None

    @classmethod
    def of(cls, labels: Any, tags: np.ndarray[Any, Any] | None) -> TrackedLabels:
        """Return labels with these tags."""
        found = np.asarray(labels).view(cls)
        found.tags = tags
        return found

    def __array_finalize__(self, obj: Any) -> None:
        self.tags = None

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(self)[key]
        if found.ndim != 1:
            return found
        return self.of(found, None if self.tags is None else self.tags[key])

    def __deepcopy__(self, memo: Any) -> TrackedLabels:
        return self.copy()

    def copy(self, order: Any = "C") -> TrackedLabels:
        """Return a copy with the tags."""
        return self.of(np.array(self, order=order, subok=False), None if self.tags is None else self.tags.copy())

    def sort(self, *arguments: Any, **options: Any) -> None:
        """Sort in place, which loses the tags."""
        super().sort(*arguments, **options)
        self.tags = None

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        if func in _JOINING and args and all(isinstance(one, TrackedLabels) for one in args[0]):
            plain = func([np.asarray(one) for one in args[0]], *args[1:], **kwargs)
            tags = [one.tags for one in args[0]]
            lost = any(one is None for one in tags)
            return self.of(plain, None if lost else np.concatenate(tags))
        return super().__array_function__(func, types, args, kwargs)
