"""Takes the screenshot of the web demo: its page with the astronaut, in Chromium.

python docs/figures/web_demo.py

Writes ``web_demo.png`` beside this file. Needs the extra ``demo``, Playwright and a Chromium.
"""

from __future__ import annotations

import io
import shutil

import numpy as np
from paper import detector, save_image
from PIL import Image
from playwright.sync_api import sync_playwright

from hihlandmark.demo import open_demo

WIDTH, HEIGHT = 1100, 900


def main() -> None:
    """Open the page, click the example, and save a screenshot."""
    with (
        open_demo(lambda layout, model: detector(layout), port=0) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(address)
        page.get_by_role("button", name="Astronaut").click()
        for part in ("#whole", "#crops"):
            page.locator(f"{part} img").first.wait_for(timeout=60_000)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until transitions of the page have ended
        content = page.screenshot(full_page=True)
        browser.close()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    save_image(np.asarray(image), "web_demo.png")


if __name__ == "__main__":
    main()
