"""Checks of a page in a browser: accessibility by axe-core, boxes that overflow, texts of figures that touch."""

import json

# Elements that reach over the right edge of the page, or over the edge of the box that they belong to. What lies in a
# box that scrolls, or is there for screen readers alone, may be wider.
OVERFLOWS = """
(boxes) => {
  const named = (element) => `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 40)}`;
  const scrolls = (element, top) => {
    for (let at = element; at; at = at === top ? null : at.parentElement) {
      if (at.matches(".sr, .skip") || !["visible", "clip"].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  const found = [];
  for (const box of [document.body, ...document.querySelectorAll(boxes)]) {
    if (!box.checkVisibility()) continue;
    const edge = box.getBoundingClientRect().right + 1;
    for (const element of box.querySelectorAll("*:not(svg *)")) {
      const {width, right} = element.getBoundingClientRect();
      if (!width || right <= edge || !element.checkVisibility() || scrolls(element, box)) continue;
      found.push([named(box), named(element), right - edge]);
    }
  }
  return found;
}
"""
# Boxes that scroll sideways, with the width that they lack.
SCROLLING = """
(boxes) => [...document.querySelectorAll(boxes)]
  .filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth)
  .map((box) => [box.getAttribute("aria-label"), box.scrollWidth - box.clientWidth])
"""
# Pairs of texts of one figure that touch.
TOUCHING = """
() => {
  const found = [];
  for (const figure of document.querySelectorAll("svg.figure")) {
    if (!figure.checkVisibility()) continue;
    const texts = [...figure.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([one, a], at) => {
      for (const [other, b] of texts.slice(at + 1)) {
        const isBeside = a.left >= b.right || b.left >= a.right;
        if (!isBeside && a.top < b.bottom - 2 && b.top < a.bottom - 2) found.push([one, other]);
      }
    });
  }
  return found;
}
"""


def axe_violations(page, part=None):
    """What axe-core finds against WCAG and good practice on a page, or in a part of it: rule, element and why."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=part).response["violations"]
    return [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]


def assert_accessible(page, part=None):
    """Nothing is found by axe-core."""
    found = axe_violations(page, part)
    assert not found, json.dumps(found, indent=1)[:4000]
