"""The page of `hsta serve` in a browser, Debian's or whichever Chromium is installed."""

import base64
import json

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed, which drives a browser")
EVENTS = ("onset", "apex", "offset")
PATIENCE = 300_000  # milliseconds; of a busy machine


@pytest.fixture
def context(browser):
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    playwright.expect.set_options(timeout=PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context, server):
    """Opened; nothing goes wrong in it unseen."""
    page = opened(context, server)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
    yield page
    assert not wrong


def opened(context, server):
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    return page


def drop(page, path):
    """As a hand does, which playwright cannot: a file from outside the browser."""
    page.evaluate(
        """([name, bytes]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0))], name));
            const event = { dataTransfer: moved, bubbles: true, cancelable: true };
            for (const type of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(type, event));
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode()],
    )


def downloaded(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").press("Enter")
    return download.value.suggested_filename, json.loads(download.value.path().read_text())


def values(page):
    return [int(page.get_by_role("slider", name=name).get_attribute("aria-valuenow")) for name in EVENTS]


def test_a_film_that_is_dropped_is_told_and_a_mark_that_is_dragged_counts(page, clips, server):
    expected = server.predict(clips[0].read_bytes())[1]["result"]
    drop(page, clips[0])
    heading = page.get_by_role("heading", name=expected["label"], exact=True)
    playwright.expect(heading).to_be_visible()
    name, result = downloaded(page)
    assert name == "3.json"
    assert result == {**expected, "file": "3.mp4"}
    assert page.get_by_role("row").all_inner_texts()[1].split() == [
        expected["label"],
        f"{max(expected['probabilities'].values()):.3f}",
    ]
    assert page.locator("#face").evaluate("image => image.decode().then(() => image.naturalWidth)") == 224
    assert values(page) == [expected[event] for event in EVENTS]
    assert page.locator("#attention rect").count() == len(expected["moments"])

    box = page.locator("#onset rect").bounding_box()
    chart = page.locator("#axes path").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(chart["x"], box["y"], steps=3)
    page.mouse.up()
    assert values(page)[0] == 0
    playwright.expect(page.locator("#events")).to_contain_text("moved, not predicted from yet")
    page.get_by_role("button", name="Predict from these marks").click()
    playwright.expect(page.locator("#events")).to_contain_text("given")
    _, again = downloaded(page)
    assert [again[event] for event in EVENTS] == [0, expected["apex"], expected["offset"]]
    assert again["motion_curve"][0] == 0 and not again["spotted"]
    page.get_by_role("button", name="Find the marks again").click()
    playwright.expect(page.locator("#events")).to_contain_text("found")
    assert downloaded(page)[1] == result


def test_what_is_no_film_is_refused_in_a_sentence(page, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_text("no video")
    drop(page, path)
    alert = page.get_by_role("alert")
    playwright.expect(alert).to_contain_text("This is no film that can be read")
    playwright.expect(page.get_by_role("heading", level=2)).to_be_hidden()


def test_two_gigabytes_are_refused_before_they_are_sent(page, tmp_path):
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.truncate(2**31)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#files", path)
    playwright.expect(page.get_by_role("alert")).to_contain_text("The upload is larger than 2 MB, the limit here")
    assert not asked


def test_a_page_that_sends_too_much_all_the_same_hears_why(page):
    told = page.evaluate(
        "fetch('predict', { method: 'POST', body: new Blob([new Uint8Array(2e8)]) }).then((answer) => answer.json())"
    )
    assert told == {"error": "the upload is larger than 2 MB, the limit here: cut the film"}


def test_two_people_at_once_each_see_their_own(browser, server, clips):
    contexts = [browser.new_context() for _ in clips]
    pages = [opened(context, server) for context in contexts]
    for page, clip in zip(pages, clips, strict=True):
        page.set_input_files("#files", clip)
    for page, clip in zip(pages, clips, strict=True):
        playwright.expect(page.get_by_role("status")).to_contain_text("Done", timeout=PATIENCE)
        expected = server.predict(clip.read_bytes())[1]["result"]
        assert downloaded(page)[1] == {**expected, "file": clip.name}
    for context in contexts:
        context.close()


def test_by_keyboard_alone(page, clips):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.set_input_files("#files", clips[0])  # what the browser's own window does
    heading = page.get_by_role("heading", level=2)
    playwright.expect(heading).to_be_focused()
    onset, apex, offset = values(page)
    page.keyboard.press("Tab")
    playwright.expect(page.get_by_role("slider", name="onset")).to_be_focused()
    for key in ("Home", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")
    page.keyboard.press("PageUp")  # ten frames on, but not past the offset
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    last = int(page.get_by_role("slider", name="offset").get_attribute("aria-valuemax"))
    expected = [1, min(apex + 10, offset), last]
    assert values(page) == expected != [onset, apex, offset]
    told = page.get_by_role("slider", name="apex").get_attribute("aria-valuetext")
    assert told.startswith(f"frame {expected[1]}, ") and told.endswith(" seconds")
    page.keyboard.press("Tab")
    playwright.expect(page.get_by_role("button", name="Predict from these marks")).to_be_focused()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#events")).to_contain_text("given")
    result = downloaded(page)[1]
    assert [result[event] for event in EVENTS] == expected
    assert len(result["times"]) == last + 1


def test_everything_has_a_name_and_follows_light_and_dark(page, clips):
    page.set_input_files("#files", clips[0])
    playwright.expect(page.get_by_role("heading", level=2)).to_be_focused()
    for element in page.locator("input, button, [role=slider], img, [role=img], [role=group]").all():
        name = element.evaluate(
            "e => e.ariaLabel || e.getAttribute('aria-label') || e.alt || e.labels?.[0]?.textContent || e.textContent"
        )
        assert name.strip(), element.evaluate("e => e.outerHTML")
    looks = """[getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.getElementById('chart')).filter]"""
    page.emulate_media(color_scheme="light")
    assert page.evaluate(looks) == ["rgb(255, 255, 255)", "none"]
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(looks) == ["rgb(22, 22, 22)", "invert(0.91) hue-rotate(180deg)"]
