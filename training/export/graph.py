"""A run as one graph: from pixels to the class of one crop, with every choice made inside.

Axes: B images, K candidates, L glimpses, H and W px of an image, C colours, h px of a side, S px of
a glimpse, N classes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import Box, CropLayout
from training.model.classifier import SelectiveClassifier
from training.model.estimators import take

RED, GREEN, BLUE = 19595, 38470, 7471  # of 65,536: Pillow's ITU-R 601-2 luma
TRACED = (2, 61, 53, 3)  # of the images that are traced; a size of 1 would be frozen into a graph
INPUT, OUTPUTS = "images", ("logits", "choice", "probabilities")
FREE = ("batch", "height", "width")  # sizes that no graph fixes


class ChoiceGraph(nn.Module):
    """Resizes images, chooses a crop of each by its glimpses, and classifies that crop alone.

    Images are resized as a build does, but by torch's antialiased bilinear on bytes: its pixels are
    Pillow's to within a step of 0 to 255, and so are those of ONNX's Resize. An image of the
    canvas's size is its own canvas.
    """

    def __init__(self, model: SelectiveClassifier, layout: CropLayout) -> None:
        """Take a run's networks and where its crops lie."""
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose and classify.

        Args:
            images: Uint8 `(B, H, W, 3)`, upright, RGB.

        Returns:
            Logits of the chosen crop, float32 `(B, N)`; its index among the candidates, int64
            `(B,)`; the proposer's probabilities, float32 `(B, K)`, of which a run without a
            proposer gives 1 to its own crop.
        """
        pixels_BCHW = images.permute(0, 3, 1, 2)
        crops_BKChh = cut_candidates(pixels_BCHW, self.layout, self.model.candidates)
        if self.model.proposer is None:
            fixed, num_images = self.model.fixed_index or 0, images.shape[0]
            choice_B = images.new_full((num_images,), fixed, dtype=torch.int64)
            probabilities_BK = F.one_hot(choice_B, len(self.model.candidates)).float()
        else:
            proposal = self.model.proposer(self._glimpses(pixels_BCHW))
            choice_B, probabilities_BK = proposal.chosen_B, proposal.probabilities_BK
        crop_BChh = take(crops_BKChh, choice_B)
        logits_BN = self.model.logits(crop_BChh.permute(0, 2, 3, 1))
        return logits_BN, choice_B, probabilities_BK

    def _glimpses(self, pixels_BCHW: Tensor) -> Tensor:
        """Make the glimpses that the proposer looks at, uint8 `(B, L, S, S)`."""
        looked_at_BLChh = cut_candidates(pixels_BCHW, self.layout, self.model.looked_at)
        side, shape = self.model.glimpse_px, looked_at_BLChh.shape[:2]
        small_NCSS = resize(looked_at_BLChh.flatten(0, 1), side, side)
        return gray(small_NCSS).reshape(*shape, side, side)


def cut_candidates(pixels_BCHW: Tensor, layout: CropLayout, candidates: tuple[int, ...]) -> Tensor:
    """Cut candidates from the canvas, or from the resized image, `(B, K, 3, h, h)`."""
    return torch.stack(list(_crops(pixels_BCHW, layout, candidates)), 1)


def _crops(
    pixels_BCHW: Tensor, layout: CropLayout, candidates: tuple[int, ...]
) -> Iterator[Tensor]:
    canvas_BChh = resize(pixels_BCHW, layout.canvas_px, layout.canvas_px)
    for k in candidates:
        box = layout.boxes[k]
        if layout.is_cut(k):
            yield canvas_BChh[:, :, box.y0 : box.y1, box.x0 : box.x1]
        else:
            yield resize_box(pixels_BCHW, box, layout)


def resize_box(pixels_BCHW: Tensor, box: Box, layout: CropLayout) -> Tensor:
    """Resize the part of images that a box of the canvas covers to a crop, `(B, C, h, h)`.

    The whole image is resized so that the part gets the crop's size. Where that is no whole number
    of pixels, as for strips of a canvas that three does not divide, the part is moved by less than
    half a pixel of the crop.
    """
    side, canvas = layout.crop_px, layout.canvas_px
    wide, high = box.x1 - box.x0, box.y1 - box.y0
    width, height, x0, y0 = (
        round(part * side / whole)
        for part, whole in ((canvas, wide), (canvas, high), (box.x0, wide), (box.y0, high))
    )
    resized = resize(pixels_BCHW, height, width)
    return resized[:, :, y0 : y0 + side, x0 : x0 + side]


def resize(pixels_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Resize bytes, bilinear with antialiasing; sides in px."""
    return F.interpolate(pixels_BCHW, (height, width), mode="bilinear", antialias=True)


def gray(pixels_BCSS: Tensor) -> Tensor:
    """Compute Pillow's luma in integers, uint8 `(B, S, S)`."""
    red, green, blue = pixels_BCSS.int().unbind(1)
    luma = RED * red + GREEN * green + BLUE * blue + 2**15
    return torch.div(luma, 2**16, rounding_mode="trunc").to(torch.uint8)


def trace(graph: nn.Module) -> torch.export.ExportedProgram:
    """Trace a graph of images with torch; their number and their size stay free.

    Two images are traced, since a size of 1 is taken for a constant (pytorch#157621, #169178).
    """
    images = torch.zeros(TRACED, dtype=torch.uint8)
    free = {axis: torch.export.Dim(name) for axis, name in enumerate(FREE)}
    return torch.export.export(graph.eval(), (images,), dynamic_shapes={INPUT: free})
