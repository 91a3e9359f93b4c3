"""The page of `hsta report` in a browser: in the light, in the dark, on a telephone's screen and on paper."""

import json
import re

import cv2
import numpy as np
import pytest
from hsta.cli import main
from hsta.results.examples import examples
from hsta.results.tested_clips import Prediction
from torch import from_numpy

from hsta_kernels import tensor_files
from tests.frontend.evaluations import write_evaluation

NAMES = ("happiness", "disgust", "repression", "surprise", "fear", "sadness", "anything else that somebody felt")
PAPER = 718  # CSS pixels between margins of a centimetre on A4

# What a reader sees of each piece of text: its colour, and that of what lies behind it. In pictures of the page both
# go through the filter that turns them over in the dark.
SEEN = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const turned = (colour) => {  // invert(0.91) hue-rotate(180deg), by the matrix of the standard
        const [r, g, b] = colour.map((value) => 0.91 * 255 + (1 - 2 * 0.91) * value);
        return [-0.574 * r + 1.43 * g + 0.144 * b, 0.426 * r + 0.43 * g + 0.144 * b, 0.426 * r + 1.43 * g - 0.856 * b]
            .map((value) => Math.min(Math.max(value, 0), 255));
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = numbers(getComputedStyle(element).backgroundColor);
            if (colour[3] !== 0) return colour.slice(0, 3);
        }
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const seen = [];
    while (walker.nextNode()) {
        const text = walker.currentNode, element = text.parentElement;
        if (!text.data.trim() || element.closest("style")) continue;
        const svg = element.closest("svg");
        if (!svg) {
            seen.push([text.data, numbers(getComputedStyle(element).color).slice(0, 3), behind(element)]);
            continue;
        }
        const filter = getComputedStyle(svg).filter;
        if (!["none", "invert(0.91) hue-rotate(180deg)"].includes(filter)) throw new Error(filter);
        const through = filter === "none" ? (colour) => colour : turned;
        const box = element.getBoundingClientRect();
        const shape = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
            .find((other) => ["path", "rect"].includes(other.tagName));
        const fill = numbers(getComputedStyle(element).fill).slice(0, 3);
        const below = shape ? through(numbers(getComputedStyle(shape).fill).slice(0, 3)) : behind(svg);
        seen.push([text.data, through(fill), below]);
    }
    return seen;
}"""
OUTSIDE = """() => [...document.body.querySelectorAll("*")]
    .filter((element) => !element.parentElement.closest(".wide, svg"))
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map((element) => element.outerHTML.slice(0, 80))"""
CUT = """() => [...document.querySelectorAll("table, svg")]
    .filter((element) => element.getBoundingClientRect().right > document.body.getBoundingClientRect().right + 0.5)
    .map((element) => element.outerHTML.slice(0, 80))"""

BROKEN = """() => [...document.querySelectorAll("th, table:not(.words) td")].flatMap((cell) => {
    const text = cell.firstChild, range = document.createRange();
    return [...(text?.data ?? "").matchAll(/\\S+/g)].filter(({ 0: word, index }) => {
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        return range.getClientRects().length !== 1;
    }).map(([word]) => word);
})"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Seven classes, one with a long name, two data sets, two hundred clips; eight moments of attention."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    probabilities = iter(rng.dirichlet(np.full(7, 0.4), 200).tolist())
    predictions = [
        Prediction(dataset, f"sub{n % 12:02}", f"EP{n}", int(rng.integers(7)), tuple(next(probabilities)))
        for dataset in ("casme2", "samm")
        for n in range(100)
    ]
    write_evaluation(folder, predictions, NAMES, faults=["a" * 200], notes=[], lost_clips=0)
    arguments = {"command": "evaluate", "data": {"data": "/" + "a-folder-deep-down/" * 8}}
    (folder / "config.json").write_text(json.dumps(arguments))
    chosen = list(examples(predictions))
    told = [{**vars(one), "apex": 9, "moments": [[3 * t, 3 * t + 1] for t in range(8)]} for one in chosen]
    weights = rng.dirichlet(np.full(8 * 14 * 14, 0.2), len(chosen)).reshape(-1, 8, 14, 14).astype(np.float32)
    (folder / "attention").mkdir()
    metadata = {"clips": json.dumps(told), "patch": repr(16 / 224)}
    tensor_files.save(folder / "attention" / "all.safetensors", {"video": from_numpy(weights)}, metadata)
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def faces(evaluated, tmp_path_factory):
    path = tmp_path_factory.mktemp("faces") / "faces.html"
    assert main(["report", str(evaluated), "--faces", "--output", str(path)]) == 0
    return path


@pytest.fixture(params=["wide", "faces"])
def path(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def shown(browser):
    """A page as it is shown; nothing but the file is asked for."""
    contexts = []

    def show(path, width, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        return page

    yield show
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_on_the_page_and_can_be_read(path, shown, scheme, width, tmp_path):
    page = shown(path, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert path.stat().st_size < 2_000_000
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": height})  # else nothing is found behind what is scrolled away
    seen = page.evaluate(SEEN)
    assert len(seen) > 200
    faint = [(text, text_colour, below) for text, text_colour, below in seen if contrast(text_colour, below) < 4.5]
    assert not faint
    screenshot = tmp_path / "page.png"
    page.screenshot(path=screenshot)
    picture = cv2.imread(str(screenshot))
    assert picture.shape[:2] == (height, width)
    background, least, most = (255, 200, 255) if scheme == "light" else (22, 22, 60)
    assert picture[0, 0].tolist() == [background] * 3
    assert least < picture.mean() < most


def test_faces_are_not_turned_over_in_the_dark(faces, shown):
    """As they are shown in the light, to the pixel."""
    pictures = []
    for scheme in ("light", "dark"):
        data = shown(faces, 1280, scheme).locator("svg.face").first.screenshot()
        pictures.append(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    inside = [picture[2:-2, 2:-2] for picture in pictures]
    np.testing.assert_array_equal(*inside)
    assert inside[0].std() > 20


def test_on_paper(path, shown):
    page = shown(path, PAPER, "dark")
    pictures = page.locator("svg image").count()
    pdf = page.pdf(format="A4", margin=dict.fromkeys(("top", "right", "bottom", "left"), "1cm"))
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2
    assert len(re.findall(rb"/Subtype\s*/Image\b", pdf)) >= pictures
    assert (pictures > 0) == path.name.startswith("faces")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
    assert page.evaluate(CUT) == []
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    unbroken = page.evaluate(
        """() => [...document.querySelectorAll("tr, figure")].map((row) => getComputedStyle(row).breakInside)"""
    )
    assert set(unbroken) == {"avoid"}
    assert page.evaluate("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"


def contrast(*colours):
    """Of two colours, as WCAG 2 has it: 1 to 21."""
    shares = np.array(colours) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)
