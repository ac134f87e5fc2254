"""Takes the image of the web demo: its page with the astronaut, in Chromium.

python docs/figures/web_demo.py

Writes ``web_demo.png`` beside this file. Needs the extra ``demo``, Playwright and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import threading

import numpy as np
from paper import detector, save_picture
from PIL import Image
from playwright.sync_api import sync_playwright

from hihlandmark.web import open_demo

WIDTH, HEIGHT = 1000, 900


def main() -> None:
    """Open the page, give it the astronaut, and take its image."""
    with open_demo(lambda layout, model: detector(layout), port=0) as demo, sync_playwright() as p:
        server = threading.Thread(target=demo.run)
        server.start()
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(demo.address)
        page.get_by_role("button", name="Try the astronaut").click()
        page.locator("#details img").wait_for(timeout=60_000)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        content = page.screenshot(full_page=True)
        browser.close()
        demo.close()
        server.join()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    save_picture(np.asarray(picture), "web_demo.png")


if __name__ == "__main__":
    main()
