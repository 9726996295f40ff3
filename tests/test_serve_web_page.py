"""The pages in a real browser: order, life without a reload, keys, class maps, and nothing that the policy forbids."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import needs
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from web_data import open_site, phantom_files, receive, refuse, score, small_model, uid
from web_server import serving

from fastich.predictive_values import ppv_npv
from fastich.serve.entities import Description
from fastich.serve.web.app import build_app

pytestmark = needs("chromium", "chromedriver")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_S = 20.0
PHONE, DESK = (390, 844), (1440, 900)


@contextlib.contextmanager
def chromium() -> Iterator[WebDriver]:
    """A headless browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.binary_location = str(shutil.which("chromium"))
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model, time.time)) as made:
        made.session.artifact = evaluated(made.session.artifact)
        yield made


def evaluated(artifact: Any) -> Any:
    rates = {"sensitivity": {"any": {"value": 0.9}}, "specificity": {"any": {"value": 0.8}}}
    object.__setattr__(artifact, "metrics", {"split": "test", "studies": rates})
    return artifact


@pytest.fixture
def address(site, browser):
    with serving(build_app(site.parts())) as made:
        size(browser, DESK)
        yield made
        browser.get("about:blank")  # lets go of the event stream
        wrong = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        browser.delete_all_cookies()
        assert wrong == []


def size(browser: WebDriver, sides: tuple[int, int]) -> None:
    numbers = {"width": sides[0], "height": sides[1], "deviceScaleFactor": 1, "mobile": sides == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", numbers)


def until(told: Callable[[], Any], what: str) -> Any:
    """What ``told`` says once it is true."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            found = told()
            if found:
                return found
        time.sleep(0.05)
    raise AssertionError(f"not within {WAIT_S} s: {what}")


def log_in(browser: WebDriver, address: str, site) -> None:
    browser.get(f"{address}/login")
    browser.find_element(By.NAME, "token").send_keys(site.token())
    browser.find_element(By.NAME, "name").send_keys("Kim")
    browser.find_element(By.CSS_SELECTOR, "main button").click()
    until(lambda: browser.find_element(By.ID, "live").text == "live", "the page is live")


def rows(browser: WebDriver, where: str = "") -> list[str]:
    """The study UIDs that are shown, from the top."""
    script = f"return [...document.querySelectorAll('{where} li.study:not([hidden])')].map(row => row.dataset.uid)"
    return list(browser.execute_script(script))


def press(browser: WebDriver, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def js(browser: WebDriver, expression: str) -> Any:
    return browser.execute_script(f"return {expression}")


def add(site, number: int, triage: str, about: Description | None = None, slices: int = 2) -> None:
    receive(site, uid(number), phantom_files(uid(number))[2 : 2 + slices], about)
    score(site, uid(number), triage=triage)


def test_worklist_lives_without_a_reload(browser, site, address):
    add(site, 1, "clear")
    add(site, 2, "human first")
    log_in(browser, address, site)
    browser.execute_script("window.same = true")
    assert rows(browser) == [uid(2), uid(1)]
    add(site, 3, "flag")
    until(lambda: rows(browser) == [uid(3), uid(2), uid(1)], "the flagged study rises to the top")
    assert rows(browser, "#raised") == [uid(3), uid(2)]
    assert js(browser, "document.title") == "(2) Worklist · fastich"
    first = browser.find_element(By.CSS_SELECTOR, f'li[data-uid="{uid(3)}"] time').text
    until(lambda: browser.find_element(By.CSS_SELECTOR, f'li[data-uid="{uid(3)}"] time').text != first, "its age ticks")
    refuse_one(site, 4)
    until(lambda: "contrast study" in browser.find_element(By.ID, "rest").text, "what is not evaluated says why")
    assert js(browser, "window.same") is True


def refuse_one(site, number: int) -> None:
    receive(site, uid(number), phantom_files(uid(number))[:1])
    refuse(site, uid(number), "contrast study")


def test_keys_move_acknowledge_and_take_back(browser, site, address):
    add(site, 1, "flag")
    add(site, 2, "flag")
    log_in(browser, address, site)
    press(browser, "j")
    press(browser, "j")
    press(browser, "k")
    assert js(browser, "document.activeElement.closest('li').dataset.uid") == uid(1)
    press(browser, "a")
    until(lambda: rows(browser) == [uid(2)], "the acknowledged study leaves the open ones")
    study = site.store.study(uid(1))
    assert study is not None
    assert study.acknowledged_by == "Kim (viewer)"
    assert "1 of them acknowledged" in browser.find_element(By.ID, "shown").text
    browser.find_element(By.CSS_SELECTOR, 'input[value="seen"] + span').click()
    until(lambda: rows(browser, "#rest") == [uid(1)], "it stands under Acknowledged")
    assert "1 raised and not acknowledged shown all the same" in browser.find_element(By.ID, "shown").text
    browser.find_element(By.CSS_SELECTOR, f'li[data-uid="{uid(1)}"] a.open').send_keys("u")
    until(lambda: rows(browser, "#raised") == [uid(1), uid(2)], "it is raised again")


def test_button_acknowledges_and_a_comment_is_written(browser, site, address):
    add(site, 1, "flag")
    log_in(browser, address, site)
    browser.find_element(By.CSS_SELECTOR, '[data-do="comment"]').click()
    browser.find_element(By.ID, "comment-text").send_keys("called <b>surgery</b>")
    browser.find_element(By.CSS_SELECTOR, "#comment-form .primary").click()
    until(lambda: "called <b>surgery</b>" in browser.find_element(By.ID, "raised").text, "the comment is shown as text")
    browser.find_element(By.CSS_SELECTOR, '[data-do="acknowledge"]').click()
    until(lambda: rows(browser) == [], "the button acknowledges")


def test_11_page_that_shows_an_older_result_acknowledges_nothing_and_says_so(browser, site, address):
    add(site, 1, "flag")
    log_in(browser, address, site)
    js(browser, "document.querySelector('[name=score_id]').value = ''")
    browser.find_element(By.CSS_SELECTOR, '[data-do="acknowledge"]').click()
    until(lambda: "a newer result says more" in browser.find_element(By.CSS_SELECTOR, ".warning").text, "it says why")
    assert rows(browser, "#raised") == [uid(1)]
    study = site.store.study(uid(1))
    assert study is not None
    assert study.acknowledged_at is None
    assert "409 (Conflict)" in "".join(entry["message"] for entry in browser.get_log("browser"))


def test_search_never_hides_what_is_raised(browser, site, address):
    add(site, 1, "flag", Description(patient_name="Raised^One"))
    add(site, 2, "clear", Description(patient_name="Quiet^Two"))
    add(site, 3, "clear", Description(patient_name="Other^Three"))
    log_in(browser, address, site)
    press(browser, "/")
    press(browser, "quiet")
    assert rows(browser) == [uid(1), uid(2)]
    said = browser.find_element(By.ID, "shown").text
    assert "1 not shown" in said
    assert "1 raised and not acknowledged shown all the same" in said
    press(browser, Keys.ESCAPE)
    press(browser, "?")
    assert js(browser, "document.querySelector('#help').open")


def test_slider_says_what_the_server_would(browser, site, address):
    log_in(browser, address, site)
    set_slider = "const s = document.querySelector('#prevalence'); s.value = 0.2; s.dispatchEvent(new Event('input'))"
    browser.execute_script(set_slider)
    found = [js(browser, f"document.querySelector('.{name}').textContent") for name in ("ppv", "npv")]
    assert found == [f"{100 * value:.1f} %" for value in ppv_npv(0.9, 0.8, 0.2) if value is not None]


def test_study_page_scrolls_windows_and_maps(browser, site, address):
    add(site, 1, "flag", slices=4)
    log_in(browser, address, site)
    press(browser, "j")
    press(browser, Keys.ENTER)
    shown = "document.querySelector('#picture')?.dataset.shown"
    until(lambda: js(browser, shown), "a picture is drawn")
    key = js(browser, "JSON.parse(document.querySelector('#numbers').textContent).key")
    assert js(browser, shown) == f"/studies/{uid(1)}/slices/{key}.png?window=brain&overlay=none"
    press(browser, Keys.HOME)
    until(lambda: "/slices/0.png" in js(browser, shown), "Home goes to the first slice")
    press(browser, "j")
    until(lambda: "/slices/1.png" in js(browser, shown), "j goes to the next")
    wheel = "document.querySelector('#picture').dispatchEvent(new WheelEvent('wheel', {deltaY: 80, cancelable: true}))"
    browser.execute_script(wheel)
    until(lambda: "/slices/3.png" in js(browser, shown), "the wheel scrolls")
    press(browser, "2")
    until(lambda: "window=subdural" in js(browser, shown), "2 is the subdural window")
    sum_of = "[...document.querySelector('#picture').getContext('2d').getImageData(0, 0, 64, 64).data]"
    assert js(browser, f"{sum_of}.every((v, i, all) => i % 4 !== 0 || (v === all[i + 1] && v === all[i + 2]))")
    press(browser, "o")
    until(lambda: "overlay=any" in js(browser, shown), "o shows a class map")
    assert "class map: any" in browser.find_element(By.ID, "mapped").text
    press(browser, "o")
    until(lambda: "overlay=none" in js(browser, shown), "o takes it away")
    assert "Not for diagnosis" in browser.find_element(By.CSS_SELECTOR, ".stage").text
    press(browser, "a")
    until(lambda: "seen by Kim" in browser.find_element(By.CSS_SELECTOR, ".result").text, "a acknowledges")
    press(browser, Keys.ESCAPE)
    until(lambda: js(browser, "location.pathname") == "/", "Esc goes back")


def test_study_page_says_that_a_new_result_came(browser, site, address):
    add(site, 1, "flag")
    log_in(browser, address, site)
    browser.get(f"{address}/studies/{uid(1)}")
    until(lambda: browser.find_element(By.ID, "live").text == "live", "the page is live")
    receive(site, uid(1), phantom_files(uid(1))[6:9])
    score(site, uid(1), triage="flag")
    until(lambda: browser.find_element(By.ID, "stale").is_displayed(), "the page says that there is more")


@pytest.mark.parametrize("sides", [PHONE, (820, 1180), DESK])
def test_no_page_scrolls_sideways(browser, site, address, sides):
    long = Description(
        patient_name="Wolfeschlegelsteinhausenbergerdorff" * 3, patient_id="M" * 64, study_description="x" * 64
    )
    add(site, 1, "flag", long)
    add(site, 2, "clear")
    refuse_one(site, 3)
    log_in(browser, address, site)
    size(browser, sides)
    for path in ("/", f"/studies/{uid(1)}", f"/studies/{uid(3)}", "/drift"):
        browser.get(address + path)
        until(lambda: js(browser, "document.readyState") == "complete", "the page is there")
        assert js(browser, "document.documentElement.scrollWidth") <= sides[0], path


def test_theme_is_dark_until_light_is_chosen_and_stays(browser, site, address):
    log_in(browser, address, site)
    assert js(browser, "document.documentElement.dataset.theme") == "dark"
    press(browser, "t")
    browser.refresh()
    assert js(browser, "document.documentElement.dataset.theme") == "light"
    browser.execute_script("localStorage.clear()")
