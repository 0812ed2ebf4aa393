"""Take images from an iterable and prepare them in threads, ahead of their turn.

One thread asks the iterable for images, so that a slow one does not hold back what is ready. Others decode. What the
iterable yields is copied or read before it is asked for more, because many video readers refill one buffer.
"""

import concurrent.futures
import io
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax
import numpy as np
from PIL import Image

from multipatch_jax.config import TilingConfig
from multipatch_jax.image import PreparedImage, count_pixels, load_image, prepare_image

READ_AHEAD = 4  # images that are decoded, or being decoded, ahead of their turn
PATIENCE = 0.1  # seconds that a stream waits for an image before it encodes what it has
LARGE_PIXELS = 2**24  # images with more pixels are decoded one at a time: each can take 11 bytes a pixel


def read_ahead(
    images: Iterable[Any], tiling: TilingConfig, *, on_device: bool, form: str
) -> Generator[PreparedImage | BaseException | None, None, None]:
    """Yield, for each image in order, the prepared image or the error that it raised.

    None comes between images where `images` has kept the caller waiting for PATIENCE seconds, and before an error of
    `images` itself is raised: the caller can then finish what it has. Images of a list, a tuple or an array are taken
    as they are; those of any other iterable are copied or read (`_owned`).

    Args:
      images: of anything that `load_image` takes.
      tiling: the model's.
      on_device, form: as in `prepare_image`.
    """
    arrivals: queue.SimpleQueue[concurrent.futures.Future[PreparedImage] | None] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(READ_AHEAD), threading.Event()
    failures: list[BaseException] = []  # at most one: that of `images` itself
    own = None if isinstance(images, (list, tuple, np.ndarray)) else _owned

    def prepare(image: Any) -> PreparedImage:
        return prepare_image(load_image(image), tiling, on_device=on_device, form=form)

    def prepare_in_turn(image: Any) -> PreparedImage:
        if count_pixels(image) <= LARGE_PIXELS:
            return prepare(image)
        return one_thread.submit(prepare, image).result()

    def read() -> None:
        try:
            source = iter(images)
            while room.acquire() and not stopped.is_set():
                image = next(source, arrivals)  # `arrivals` stands for the end
                if image is arrivals:
                    break
                arrivals.put(_submit(pool, prepare_in_turn, own, image))
        except BaseException as error:
            failures.append(error)
        finally:
            arrivals.put(None)

    threads = concurrent.futures.ThreadPoolExecutor
    with threads(1, "multipatch-large") as one_thread, threads(READ_AHEAD, "multipatch") as pool:
        reader = threading.Thread(target=read, name="multipatch-reader", daemon=True)
        reader.start()
        try:
            while True:
                try:
                    future = arrivals.get(timeout=PATIENCE)
                except queue.Empty:
                    yield None
                    future = arrivals.get()
                if future is None:
                    break
                yield future.exception() or future.result()
                room.release()
        finally:  # reached also when the caller stops early
            stopped.set()
            room.release()
            pool.shutdown(cancel_futures=True)
            reader.join(PATIENCE)  # longer could be for ever, where `images` waits for something
    if failures:
        yield None
        raise failures[0]


def _submit(
    pool: concurrent.futures.Executor,
    prepare: Callable[[Any], PreparedImage],
    own: Callable[[Any], Any] | None,
    image: Any,
) -> concurrent.futures.Future[PreparedImage]:
    try:
        return pool.submit(prepare, image if own is None else own(image))
    except Exception as error:  # of this image, not of the iterable
        failed: concurrent.futures.Future[PreparedImage] = concurrent.futures.Future()
        failed.set_exception(error)
        return failed


def _owned(image: Any) -> Any:
    """Return the image as its owner has it now, whatever happens to the buffer, the file or the object later.

    Arrays are copied, files are read, and PIL images are decoded.
    """
    if isinstance(image, Image.Image):
        return load_image(image)
    if isinstance(image, (str, os.PathLike)) and os.path.isfile(image):  # if not, `load_image` says what is wrong
        with open(image, "rb") as file:
            return _in_memory(file)
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        return _in_memory(image)
    if hasattr(image, "__array__") and not isinstance(image, jax.Array):  # which nobody can change
        return np.asarray(image).copy()
    return image


def _in_memory(file: Any) -> Any:
    """Return a file with the content and the name of `file`; `file` itself if it gives text, which no image is."""
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    content = file.read()
    if not isinstance(content, bytes):
        return file
    copy: Any = io.BytesIO(content)
    copy.name = getattr(file, "name", None)
    return copy
