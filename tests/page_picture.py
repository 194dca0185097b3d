"""Draws deploy/pictures/page.png: `PYTHONPATH=tests .venv/bin/python tests/page_picture.py`."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import SHARED
from page_browser import launched, opened
from page_service import serving
from PIL import Image
from playwright.sync_api import Page, expect
from samples import mobilenet
from skimage.data import coffee

from schemas.online import ServedModel, ServeSpec
from serve.service import Service
from serve.web import create_web

TARGET = Path(__file__).parents[1] / "deploy" / "pictures" / "page.png"
METHODS = {"gradcam": {}, "hirescam": {}, "layercam": {}, "lrp": {}, "ig": {}, "eigencam": {}, "rise": {"masks": 200}}


def spec(scratch: Path) -> ServeSpec:
    """The network of shared/data as a service; its classes without their numbers of WordNet."""
    folder = SHARED / "mobilenet_v2"
    names = [line.partition(" ")[2] for line in (folder / "labels.txt").read_text().splitlines()]
    labels = scratch / "labels.txt"
    labels.write_text("\n".join(names))
    fields = {**mobilenet(SHARED, labels=str(labels)), "methods": METHODS}
    return ServeSpec(models={"mobilenet_v2": ServedModel.model_validate(fields)})


def draw(page: Page) -> bytes:
    """A photograph explained, as the README shows it."""
    photo = io.BytesIO()
    Image.fromarray(coffee()).save(photo, "PNG")
    page.set_input_files("#file", {"name": "coffee.png", "mimeType": "image/png", "buffer": photo.getvalue()})
    expect(page.locator("#sentence")).not_to_be_empty()
    expect(page.locator("#busy")).to_be_hidden()
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    return page.screenshot()


def main() -> None:
    """Writes the picture."""
    with TemporaryDirectory() as scratch:
        service = Service(spec(Path(scratch)))
        service.start()
    size = {"width": 1240, "height": 900}
    with (
        serving(create_web(service)) as address,
        launched() as browser,
        opened(browser, address, viewport=size) as page,
    ):
        shot = Image.open(io.BytesIO(draw(page))).convert("RGB")
    service.close()
    palette = shot.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2)
    shot.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(TARGET, optimize=True)
    print(TARGET, TARGET.stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
