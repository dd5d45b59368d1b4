"""What the explorer takes in a browser: its first page, another class, opacity and scale, the brush.

`camkit explore` runs as users run it, with a model and the bundled photograph, and Chromium opens it (pip
install playwright; apt-get install chromium). Changes are timed inside the page, from the event until the
frame after it is drawn: of class, opacity or scale, and of the brush, from its key until the new bars,
beside a bare forward of the same model in this process, in turns.

    python -m benchmarks.explorer [--model SPEC] [--rounds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import camkit
from camkit.images.decoding import load, sample

FIRST, CHANGE, BRUSH = "first page, s", "another {}, ms", "brush to new bars, times a forward"
ANSWER = "of these until the answer has come"
BOUNDS = {FIRST: 1.5, **{CHANGE.format(what): 50 for what in ("class", "opacity", "scale")}, BRUSH: 1.5}
REST = 200  # milliseconds in which the browser ends what it does besides
# In the page: what is done, and milliseconds until the frame in which it is seen.
TIMED = """
(act) => new Promise((done) => {
  const begun = performance.now();
  new Function(act)();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
})
"""
CHANGES = {
    "class": """document.querySelector('#classes').dispatchEvent(
        new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }))""",
    "opacity": """const slider = document.querySelector('#opacity');
        slider.value = slider.value > 0.5 ? 0.4 : 0.8;
        slider.dispatchEvent(new Event('input', { bubbles: true }))""",
    "scale": """const other = document.querySelector('input[name=scale]:not(:checked)'); other.click()""",
}
# Milliseconds from the key that covers a cell until the answer, and until the frame after the new bars.
COVERED = """
() => new Promise((done) => {
  const bars = document.querySelector('#classes');
  const begun = performance.now();
  new MutationObserver((_, seen) => {
    if (!bars.querySelector('.value').textContent.includes('→')) return;
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => {
      const asked = performance.getEntriesByType('resource').findLast((one) => one.name.endsWith('/cover'));
      done([asked.responseEnd - begun, performance.now() - begun]);
    }));
  }).observe(bars, { childList: true });
  const key = new KeyboardEvent('keydown', { key: ' ', bubbles: true, cancelable: true });
  document.querySelector('#marks').dispatchEvent(key);
})
"""


@contextmanager
def serving(spec: str) -> Iterator[str]:
    """The address of an explorer that has loaded its model."""
    command = [sys.executable, "-m", "camkit", "explore", "--no-open", "--model", spec, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


def opened(browser: Any, address: str) -> tuple[float, Any]:
    """Seconds until the first page is ready, in a browser that knows nothing of it, and the page."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    begun = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return time.perf_counter() - begun, page


def brushed(page: Any) -> tuple[float, float]:
    """Seconds from the key that covers a cell until the answer, and until the bars that it changes."""
    page.locator("#brush").click()
    page.locator("#marks").focus()
    page.wait_for_timeout(REST)
    answer, bars = page.evaluate(COVERED)
    page.locator("#clear").click()
    page.keyboard.press("Escape")
    return answer / 1000, bars / 1000


def forward(module: torch.nn.Module, inputs: torch.Tensor) -> float:
    """Seconds of a bare forward, the median of five after one."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        with torch.inference_mode():
            module(inputs)
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def measure(spec: str, rounds: int) -> dict[str, list[float]]:
    """Samples of each figure."""
    from playwright.sync_api import sync_playwright

    model = camkit.load_model(spec, device="cpu")
    inputs = model.preprocess(load(sample()).image)[None]
    found: dict[str, list[float]] = {name: [] for name in (*BOUNDS, ANSWER)}
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with serving(spec) as address, sync_playwright() as made:
        browser = made.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(rounds):
            seconds, page = opened(browser, address)
            found[FIRST].append(seconds)
            for what in random.sample(list(CHANGES), len(CHANGES)):
                found[CHANGE.format(what)].append(page.evaluate(TIMED, CHANGES[what]))
            answer, bars = brushed(page)
            page.context.close()
            one = forward(model.module, inputs)
            found[BRUSH].append(bars / one)
            found[ANSWER].append(answer / one)
        browser.close()
    return found


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each figure."""
    lines = [
        f"Model `{result['model']}`.",
        "",
        "| what | bound | median | lowest to highest |",
        "|---|---|---|---|",
    ]
    for name, values in result["samples"].items():
        extent = f"{min(values):.3g} to {max(values):.3g}"
        bound = f"<= {BOUNDS[name]}" if name in BOUNDS else ""
        lines.append(f"| {name} | {bound} | {median(values):.3g} | {extent} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="pets")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explorer.json"))
    asked = parser.parse_args()
    result = {"model": asked.model, "samples": measure(asked.model, asked.rounds)}
    print(report(result))
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
