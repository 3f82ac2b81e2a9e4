"""The report as people see it: in a real browser, on light and dark screens, narrow ones too, on paper."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.report import render

sys.path.insert(0, str(Path(__file__).parent))
from browser import MEDIA, chromium, opened

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        chromium() is None, reason="NO BROWSER HERE: install Chromium to see the report as people do"
    ),
]
CONTRAST_MIN = 3.0
"""Of large text and of what else has to be seen (WCAG 2.2, 1.4.3 and 1.4.11)."""

OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OVERLAPPING = """
(() => {
  const found = [];
  for (const svg of document.querySelectorAll('figure svg')) {
    const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim());
    const boxes = texts.map(text => text.getBoundingClientRect());
    for (let a = 0; a < texts.length; a++) for (let b = a + 1; b < texts.length; b++) {
      const over = Math.min(boxes[a].right, boxes[b].right) - Math.max(boxes[a].left, boxes[b].left);
      const under = Math.min(boxes[a].bottom, boxes[b].bottom) - Math.max(boxes[a].top, boxes[b].top);
      if (over > 2 && under > 2) found.push([texts[a].textContent, texts[b].textContent]);
    }
  }
  return found;
})()
"""
FAINT = """
(() => {
  const channels = color => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const TEXTS = 'h1, h2, p, td, th, dd, dt, a, code, figcaption, .badge, svg text';
  for (const element of document.querySelectorAll(TEXTS)) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = channels(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const told = element.textContent.trim().slice(0, 40);
    if (contrast < LEAST) found.push([element.tagName, told, contrast.toFixed(2)]);
  }
  return found;
})()
""".replace("LEAST", str(CONTRAST_MIN))


@pytest.fixture(scope="session")
def page_path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(render(replace(report, jaeger_url="http://127.0.0.1:16686")), encoding="utf-8")
    return path


@pytest.mark.parametrize("how", MEDIA)
async def test_a_report_can_be_read_on_screen_and_on_paper(page_path, tmp_path, how):
    async with opened(tmp_path) as page:
        await page.look_at(page_path, how)
        assert await page.ask(OVERLAPPING) == []
        assert await page.ask(FAINT) == []
        assert await page.ask("document.querySelectorAll('figure svg text').length") > 10
        for width in (1200, 700 if how == "print" else 400):
            await page.look_at(page_path, how, width)
            assert await page.ask(OVERFLOWING) <= 0, f"it is wider than {width} px"
        links = await page.ask(
            "[...document.querySelectorAll('.waterfall')].length && [...document.links].map(l => l.href)"
        )
        assert any(link.startswith("http://127.0.0.1:16686/trace/") for link in links)
        dark = await page.ask("getComputedStyle(document.body).backgroundColor")
        assert (dark != "rgb(255, 255, 255)") == (how != "print")
