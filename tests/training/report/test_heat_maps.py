import base64
import io

import numpy as np
import torch
from PIL import Image

from training.report.heat_maps import HEAT_PX, draw_heat


def pixels(uri: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture.convert("RGB"))


def test_heat_is_bright_where_the_map_is_high_on_one_scale_for_all() -> None:
    maps_BMN = torch.zeros(2, 4, 4)
    maps_BMN[0, 0, 0], maps_BMN[0, 3, 3] = 5, -5
    heat = draw_heat(maps_BMN + torch.tensor([0.0, 100.0])[:, None, None])
    loud, flat = (pixels(image).astype(float) for image in heat.images)
    assert loud.shape == (HEAT_PX, HEAT_PX, 3)
    assert loud[0, 0].sum() > flat[0, 0].sum() > loud[-1, -1].sum()
    assert np.ptp(flat, axis=(0, 1)).max() == 0
    assert heat.low < 0 < heat.high
    strip = pixels(heat.legend)[0, :, :3].astype(float) @ (0.3, 0.6, 0.1)
    assert (np.diff(strip) > -1.5).all()  # ordered but for the rounding of bytes


def test_maps_that_say_nothing_are_drawn_as_well() -> None:
    assert len(draw_heat(torch.zeros(3, 4, 4)).images) == 3
