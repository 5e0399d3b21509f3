"""Draw a run's choice in a photograph: its map over it, the crops' boxes, the chosen one lit."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import printable
from training.predict.load import LoadedRun
from training.predict.predict import Prediction
from training.predict.results import Result
from training.score.pictures import BOX, MAP_OPACITY, heat

TEXT_PX, LINE_PX = 16, 24
CAPTION_PX = 400  # least width: a caption must fit below a narrow photograph
DIM = 0.7  # brightness outside of the chosen crop
NAME_CHARS = 50


def save_picture(
    prediction: Prediction, result: Result, run: LoadedRun, *, folder: Path, number: int
) -> Path:
    """Write one photograph's picture as PNG.

    Args:
        prediction: With a picture.
        result: Its words.
        run: Knows the boxes.
        folder: That it is written to.
        number: Of the photograph; it makes the file's name unique.

    Returns:
        The file, such as `000012-dog.png`.
    """
    encoded = io.BytesIO()
    draw_picture(prediction, result, run).save(encoded, "PNG")
    path = folder / f"{number:06d}-{prediction.photo.file.stem[:NAME_CHARS]}.png"
    write_file(path, encoded.getvalue())
    return path


def draw_picture(prediction: Prediction, result: Result, run: LoadedRun) -> Image.Image:
    """Draw one photograph in its own shape, with a caption; arguments as for `save_picture`."""
    if prediction.photo.picture_HW3 is None:
        raise RuntimeError("a photograph without a picture")
    photo = Image.fromarray(prediction.photo.picture_HW3)
    boxes = [_place(run, k, photo.size) for k in range(len(run.model.candidates))]
    chosen = boxes[prediction.chosen]
    if prediction.map_MN is not None:
        photo = Image.blend(photo, heat(prediction.map_MN, photo.size), MAP_OPACITY)
    lit = photo.crop(chosen)
    photo = photo.point(lambda value: DIM * value)
    photo.paste(lit, chosen[:2])
    draw = ImageDraw.Draw(photo)
    for box in boxes if prediction.probabilities_K is not None else ():
        draw.rectangle(_inside(box), outline="white")
    draw.rectangle(_inside(chosen), outline="black", width=6)
    draw.rectangle(_inside(chosen, 1), outline=BOX, width=4)
    return _captioned(photo, _caption(prediction, result))


def _place(run: LoadedRun, crop: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Locate a crop in a picture of the photograph, px; never empty."""
    box = run.spec.crop_layout.source_box(run.model.candidates[crop], width=size[0], height=size[1])
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _inside(box: tuple[int, int, int, int], margin: int = 0) -> tuple[int, int, int, int]:
    """Give a box's outermost pixels, as Pillow draws them; a thin box keeps one."""
    x0, y0, x1, y1 = box
    x0, y0 = x0 + margin, y0 + margin
    return x0, y0, max(x0, x1 - 1 - margin), max(y0, y1 - 1 - margin)


def _caption(prediction: Prediction, result: Result) -> list[str]:
    pairs = zip(result.labels, result.probs, strict=True)
    classes = ", ".join(f"{printable(label)} {100 * prob:.1f} %" for label, prob in pairs)
    score = f", {100 * result.scores[prediction.chosen]:.1f} %" if result.scores else ""
    return [classes, f"crop: {result.crop}{score}"]


def _captioned(photo: Image.Image, lines: list[str]) -> Image.Image:
    size = (max(photo.width, CAPTION_PX), photo.height + LINE_PX * len(lines))
    page = Image.new("RGB", size, "white")
    page.paste(photo, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_PX)
    for number, line in enumerate(lines):
        draw.text((4, photo.height + LINE_PX * number + 2), line, "black", font=font)
    return page
