"""Run a detector over any images: no annotations, no data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from typing import Any

import torch
from mmcv.transforms import Compose
from mmengine import fileio
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image, UnidentifiedImageError

from ltpipe.data.image_sources import Broken, Picture
from ltpipe.engine.inference import of_image
from ltpipe.engine.transforms import LoadImage
from ltpipe.registry import TRANSFORMS

PictureDetections = tuple[Picture, dict[str, Any], Any]
"""A picture, its detections as of :func:`~ltpipe.engine.inference.detections`, and its pixels as they were read."""
Item = Picture | tuple[str, Broken]


@TRANSFORMS.register_module()
class LoadPicture(LoadImage):
    """mmdet's ``LoadImageFromFile`` for a :class:`~ltpipe.data.image_sources.Picture`, of which no size is known.

    An orientation (EXIF) is applied, as mmcv does it. A file that ends early is refused: OpenCV fills it with grey.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Read the image of a sample with ``picture``.

        Raises:
            Broken: It cannot be read.
        """
        picture: Picture = results["picture"]
        image = picture.pixels
        if image is None:
            try:
                content = fileio.get(str(picture.path), backend_args=self.backend_args)
            except OSError as error:
                raise Broken(error.strerror or str(error)) from error
            _check_whole(content)
            image = self._decode(content, True)
        if image is None:
            raise Broken("damaged, or of a format that the decoder does not know")
        results["pixels"] = image
        results["img"] = image.astype("float32") if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        results["img_path"] = str(picture.path)
        return results


def _check_whole(content: bytes) -> None:
    """Refuse a file that Pillow finds incomplete; what Pillow does not know is left to the decoder.

    Raises:
        Broken: It is.
    """
    try:
        Image.open(BytesIO(content)).load()
    except UnidentifiedImageError:
        return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Broken(str(error)) from error


def prediction_pipeline(steps: Sequence[Mapping[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Build a detector's test pipeline so that it reads pictures.

    Args:
        steps: ``test_pipeline`` of its config.
    """
    init_default_scope("mmdet")
    own = [
        {**step, "type": "ltpipe.LoadPicture"} if str(step["type"]).endswith("LoadImageFromFile") else dict(step)
        for step in steps
    ]
    return Compose(own)


@torch.no_grad()
def predictions(
    model: Any,
    pipeline: Callable[[dict[str, Any]], dict[str, Any]],
    pictures: Iterable[Item],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PictureDetections | tuple[str, Broken]]:
    """Yield the detections of every picture in order; the name and the reason where one cannot be read.

    The next pictures are read while the detector works.

    Args:
        model: Detector in evaluation mode.
        pipeline: As of :func:`prediction_pipeline`.
        pictures: What to detect in.
        batch_size: Images per forward pass.
        dtype: What backbone, neck and heads compute in; the rest stays in float32 where the detector was prepared by
            :func:`~ltpipe.engine.precision.guard`.
    """
    device = next(model.parameters()).device.type
    ready = _prepared(pipeline, iter(pictures), 2 * batch_size)
    while batch := list(islice(ready, batch_size)):
        whole = [item for item in batch if not isinstance(item[1], Broken)]
        with torch.autocast(
            device, dtype=None if dtype is torch.float32 else dtype, enabled=dtype is not torch.float32
        ):
            samples = model.test_step(pseudo_collate([sample for _, sample, _ in whole])) if whole else []
        found = iter(samples)
        for item, sample, pixels in batch:
            if isinstance(sample, Broken):
                yield item, sample
            else:
                result = next(found)
                yield item, of_image(result, result.pred_instances, 0), pixels


def _prepared(pipeline: Callable[..., Any], pictures: Iterator[Item], ahead: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yield pictures, their samples and pixels, some of them prepared ahead; or a name and why it is broken."""

    def prepare(item: Item) -> tuple[Any, Any, Any]:
        if not isinstance(item, Picture):
            return *item, None
        sample = {"picture": item, "img_id": 0, "instances": []}
        try:
            packed = pipeline(sample)
        except Broken as error:
            return item.name, error, None
        return item, packed, sample["pixels"]

    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[tuple[Any, Any, Any]]] = deque()
        for item in pictures:
            waiting.append(pool.submit(prepare, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
