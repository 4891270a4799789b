"""Our web pages: one head, one style and the same few functions before what is each page's own."""

import html
import json
from pathlib import Path
from typing import Any

from ldm.assets import resolve


def page(name: str, title: str, data: Any = None) -> str:
    """`assets/NAME.html` as a whole page that asks nothing of the network; its script finds `data`
    by `given("data")`. ValueError where that holds a number that JSON has not."""
    # "</script>" inside the data would end the element.
    told = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    own = Path(resolve(f"asset:{name}.html")).read_text(encoding="utf-8")
    frame = Path(resolve("asset:page.html")).read_text(encoding="utf-8")
    whole = frame.replace("__OWN__", own)
    return whole.replace("__TITLE__", html.escape(title)).replace("__DATA__", told)
