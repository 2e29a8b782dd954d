"""Make the picture of the README: the status page of a daemon under load.

    make pictures

Start the real daemon, let real clients talk to it, open its status page in Chromium, and write
what Chromium shows to `docs/pictures/status.svg`.

The picture is an SVG because the repository takes no binary, and because text in an SVG stays
text: it can be searched, scales, and is drawn in the reader's own font. A screenshot is a binary.
Chromium's PDF makes each letter a curve, and has no dark colours. An SVG that holds the page's
HTML (`foreignObject`) is shown by browsers only. So `trace.js` asks Chromium, which has laid the
page out, for each box and each line of text, and this program writes them as shapes. The colours
are those of the page by day and by night: a style sheet in the SVG follows the reader's
preference, as the page does. Only a `meter` is drawn from its value, because Chromium shows the
parts of a `meter` to no script.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import uvloop

HERE = Path(__file__).parent
PICTURE = HERE / "status.svg"
TWISTD = Path(sys.executable).with_name("twistd")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# In CSS pixels: where forges show a README it is a little narrower.
WIDTH = 960
HEIGHT = 2000  # enough for the page, so that no scroll bar takes room
MARGIN = 20
# The last section that is shown.
LAST = "Limits"

PORT, PROXY_PORT, STATUS_PORT = 8888, 8889, 9464
STATUS = f"http://127.0.0.1:{STATUS_PORT}/"
MOST = 400

# Clients that stay, and places for those that come and go.
STEADY = 240
PASSING = 4

# In seconds: how long there is load before the picture is taken, and how long that is waited for.
# The page shows the worst of a minute, so what the start has cost is gone after more than that.
LOAD = 75.0
PATIENCE = 180.0


class PictureError(Exception):
    """The picture cannot be made; the text says why, in one line."""


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Make the picture of the README.")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the SVG to write")
    output: Path = parser.parse_args().output
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and tidy up
    try:
        output.write_text(picture())
    except PictureError as error:
        print(f"make pictures: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {output.stat().st_size:,} bytes")
    return 0


def picture() -> str:
    """Return an SVG of the status page under load."""
    with (
        tempfile.TemporaryDirectory(prefix="echod-picture-") as folder,
        browser(Path(folder) / "profile") as chromium,
        daemon(Path(folder)),
        clients(),
    ):
        print(f"The daemon runs; the picture is taken in {LOAD:g} s or a little more.")
        wait_until(is_busy, "for the daemon to be busy, and not too busy")
        return drawing(*chromium.trace(STATUS))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Raises:
        PictureError: it does not come true.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise PictureError(f"waited {what}, in vain")
        time.sleep(0.1)


# The daemon.


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    """Run the daemon that is shown.

    Raises:
        PictureError: it does not start.
    """
    command = [str(TWISTD), "-n", "--pidfile=", "echod", "--framing", "line"]
    command += ["--listen", f"tcp:{PORT}", "--listen", f"proxy:tcp:{PROXY_PORT}"]
    command += ["--status", f"tcp:{STATUS_PORT}:interface=127.0.0.1"]
    command += ["--max-connections", str(MOST)]
    if metrics():
        raise PictureError(f"another daemon shows its status on port {STATUS_PORT}")
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or is_ready(), "for the daemon to start")
        if process.poll() is not None:
            said = [line for line in log.read_text().splitlines() if line.startswith("echod: ")]
            raise PictureError(" ".join(said) or "the daemon has ended")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def is_ready() -> bool:
    """Whether the daemon takes clients."""
    return 'echod_state{state="ready"} 1.0' in metrics()


def is_busy() -> bool:
    """Whether all clients are there, for long enough, and the daemon is not strained by them."""
    return (
        figure("echod_connections_open") >= STEADY
        and figure("echod_uptime_seconds") >= LOAD
        and not figure("echod_saturated")
    )


def figure(name: str) -> float:
    """Return one of the daemon's figures, of all listeners together."""
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics(), re.MULTILINE)))


def metrics() -> str:
    """Return the daemon's figures; nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"{STATUS}metrics", timeout=PATIENCE) as answer:
            return str(answer.read(), "utf-8")
    except OSError:
        return ""


# Its clients.


@contextlib.contextmanager
def clients() -> Iterator[None]:
    """Have clients talk to the daemon, in a thread with a loop of its own."""
    ended = threading.Event()
    thread = threading.Thread(target=lambda: uvloop.run(talk(ended)))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def talk(ended: threading.Event) -> None:
    """Run all clients until `ended`."""
    tasks = [asyncio.ensure_future(steady(number)) for number in range(STEADY)]
    tasks += [asyncio.ensure_future(passing(number)) for number in range(PASSING)]
    await asyncio.to_thread(ended.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def steady(number: int) -> None:
    """Be a client that asks, waits for the answer and thinks; one in six comes through a proxy."""
    await asyncio.sleep(number / 100)
    proxied = number % 6 == 0
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", PROXY_PORT if proxied else PORT, local_addr=(address(number), 0)
    )
    with contextlib.closing(writer):
        if proxied:
            writer.write(b"PROXY TCP4 198.51.100.%d 192.0.2.1 40000 8889\r\n" % (number + 1))
        await reader.readline()
        while True:
            writer.write(b"a reading: %032d\n" % number)
            await reader.readline()
            await asyncio.sleep(0.01)


async def passing(number: int) -> None:
    """Be one client after the other, each with one line; one line in ten is too long."""
    for count in itertools.count():
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", PORT, local_addr=(address(count), 0)
        )
        with contextlib.closing(writer), contextlib.suppress(OSError):
            writer.write(b"x" * 20_000 if count % 10 == number else b"happy\n")
            writer.write_eof()
            await reader.read()
        await asyncio.sleep(0.05)


def address(number: int) -> str:
    """Return one of 250 addresses that this machine has."""
    return f"127.0.1.{number % 250 + 1}"


# The browser.


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Chromium]:
    """Run a Chromium without a window.

    Raises:
        PictureError: there is none.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise PictureError("there is no Chromium (Debian: apt install chromium)")
    arguments = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # root has none; the only page is our own
    (to_read, orders), (answers, to_write) = os.pipe(), os.pipe()
    # Chromium takes orders from descriptor 3, and answers on 4.
    wired = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    process = subprocess.Popen(
        ["bash", "-c", wired, "bash", *arguments],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    with os.fdopen(orders, "wb", buffering=0) as tell, os.fdopen(answers, "rb") as hear:
        try:
            chromium = Chromium(tell, hear)
            chromium.order("Browser.getVersion")  # it has started
            yield chromium
        finally:
            process.terminate()
            process.wait(PATIENCE)


class Chromium:
    """A Chromium that takes orders by the DevTools protocol: JSON with a NUL behind it."""

    def __init__(self, tell: Any, hear: Any) -> None:
        self._tell = tell
        self._hear = hear
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}

    def trace(self, url: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what a page shows, and its colours by night."""
        target = self.order("Target.createTarget", url="about:blank")
        page = self.order("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": page["sessionId"]}
        screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.order("Emulation.setDeviceMetricsOverride", **screen)
        self._prefer("light")
        self.order("Page.navigate", url=url)
        wait_until(lambda: bool(self._evaluate("document.querySelector('footer') !== null")), "")
        trace = f"({(HERE / 'trace.js').read_text()})({json.dumps(LAST)})"
        shown = self._evaluate(trace)
        self._prefer("dark")
        return shown, self._evaluate(trace)["palette"]

    def _prefer(self, scheme: str) -> None:
        scheme_wanted = {"name": "prefers-color-scheme", "value": scheme}
        self.order("Emulation.setEmulatedMedia", features=[scheme_wanted])

    def _evaluate(self, expression: str) -> Any:
        answer = self.order("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise PictureError(f"trace.js: {answer['result'].get('description')}")
        return answer["result"]["value"]

    def order(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order, and return the answer.

        Raises:
            PictureError: the order is refused, or Chromium has ended.
        """
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        with contextlib.suppress(BrokenPipeError):
            self._tell.write(json.dumps(order).encode() + b"\0")
        answer = next(said for said in self._said() if said.get("id") == number)
        if "error" in answer:
            raise PictureError(f"Chromium, {method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _said(self) -> Iterator[dict[str, Any]]:
        while True:
            message = b"".join(iter(lambda: self._hear.read(1).rstrip(b"\0"), b""))
            if not message:
                raise PictureError("Chromium has ended")
            yield json.loads(message)


# The drawing.


def drawing(shown: Mapping[str, Any], by_night: Mapping[str, str]) -> str:
    """Return the SVG of a page that Chromium has laid out."""
    by_day: dict[str, str] = shown["palette"]
    names = {rgb(colour): name for name, colour in by_day.items()}
    body = "\n".join(line for shape in shown["shapes"] for line in drawn(shape, names))
    height = round(shown["height"] + MARGIN)
    size = f'width="{WIDTH}" height="{height}"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size} role="img">
<title>The status page of echod under load</title>
<style>
text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }}
.none {{ fill: none }}
{rules(by_day)}
@media (prefers-color-scheme: dark) {{
{rules(by_night)}
}}
</style>
<rect {size} rx="10" class="ground"/>
{body}
</svg>
"""


def rules(palette: Mapping[str, str]) -> str:
    """Return the style sheet of a palette."""
    return "\n".join(
        f".{name} {{ fill: {colour} }} .on-{name} {{ stroke: {colour} }}"
        for name, colour in palette.items()
    )


def rgb(colour: str) -> str:
    """Return a colour `#rrggbb` as a computed style has it."""
    return "rgb({}, {}, {})".format(*bytes.fromhex(colour[1:]))


def drawn(shape: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Yield a shape as SVG."""
    fill = names.get(str(shape.get("fill")), "none")
    if shape["kind"] == "text":
        yield text(shape, fill)
        return
    place = {key: shape[key] for key in ("x", "y", "width", "height")}
    if shape["kind"] == "line":
        yield element("rect", fill, **place | {"height": 1})
    elif shape["kind"] == "meter":
        filled = place | {"width": shape["share"] * shape["width"]}
        yield element("rect", "line", **place, rx=3)
        yield element("rect", "wait" if shape["full"] else "good", **filled, rx=3)
    else:
        edge = f" on-{names[shape['stroke']]}" if shape["stroke"] else ""
        yield element("rect", fill + edge, **place, rx=shape["radius"])


def text(shape: Mapping[str, Any], fill: str) -> str:
    """Return a line of text as SVG."""
    look: dict[str, float | str] = {"x": shape["x"], "y": shape["y"], "font_size": shape["size"]}
    if shape["weight"] != "400":
        look["font_weight"] = shape["weight"]
    if shape["anchor"] != "start":
        look["text_anchor"] = shape["anchor"]
    return element("text", fill, shape["text"], **look)


def element(name: str, look: str, text: str = "", **attributes: float | str) -> str:
    """Return an element; numbers have one decimal, which is as sharp as any screen."""
    said = "".join(
        f' {key.replace("_", "-")}="{value if isinstance(value, str) else f"{round(value, 1):g}"}"'
        for key, value in attributes.items()
    )
    end = f">{escape(text, quote=False)}</{name}>" if text else "/>"
    return f'<{name} class="{look}"{said}{end}'


if __name__ == "__main__":
    sys.exit(main())
