"""The web demo, `hihlandmark demo --web`: a page that takes images and shows their landmarks.

`server` listens, `guard` bounds what comes in, `page` lays out the page in Gradio, `demo` answers
what it asks for, `pictures` draws and writes, `photos` keeps an image for as long as it is shown.
Gradio is imported inside of functions: what imports this package does not need it.
"""

from hihlandmark.web.server import Limits, open_demo, serve

__all__ = ["Limits", "open_demo", "serve"]
