"""The page at / in headless Chromium: a question, a streamed answer, the switches, the numbers beside it.

Chromium and its driver are Debian's packages chromium and chromium-driver (scripts/setup installs them where they can be
had); where they are missing the tests are skipped and counted as such.
"""
import json
import re
import shutil
import time

import pytest

pytestmark = pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")),
                                reason="chromium and chromium-driver are not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,800",
                 "--disable-background-networking", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def wait(what, seconds=120):
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, what
        time.sleep(0.05)


def text(browser, name):
    return browser.find_element("id", name).text


def choose(browser, name, value):
    browser.execute_script("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                           "e.dispatchEvent(new Event('change'))", name, value)


def ask(browser, question):
    n = len(browser.find_elements("css selector", ".assistant"))
    browser.find_element("id", "prompt").send_keys(question + "\n")
    wait(lambda: len(browser.find_elements("css selector", ".assistant, .failed")) > n)


def answered(browser):
    return wait(lambda: browser.find_element("id", "send").is_displayed())


def test_chat(browser, real, tmp_path):
    browser.get(real.url + "/")
    wait(lambda: text(browser, "model") == real.name)
    choose(browser, "temperature", "0")
    choose(browser, "most", "40")
    choose(browser, "policy", "retro")
    choose(browser, "window", "4")
    choose(browser, "budget", "0.1")
    ask(browser, "Name three rivers.")
    wait(lambda: browser.find_elements("css selector", ".assistant")[-1].text)  # it streams
    answered(browser)
    answer = browser.find_elements("css selector", ".assistant")[-1].text
    status, whole = real.chat("Name three rivers.", temperature=0, max_tokens=40,
                              attention={"policy": "retro", "window": 4, "kv_budget": 0.1})
    assert answer.split() == whole["choices"][0]["message"]["content"].split()
    assert float(text(browser, "rate")) > 0
    assert float(text(browser, "exposure")) >= 1
    note = browser.find_elements("css selector", ".note")[-1].text
    assert re.search(r"\d+ \+ 40 tokens, .* exposure \d", note), note
    assert browser.get_screenshot_as_file(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10000


def test_numbers_move(browser, start, real_model):
    """The answer has no end of its own before Stop, however late that is clicked."""
    s = start("--max-context", 8192, "--threads", 2, model=real_model)
    browser.get(s.url + "/")
    browser.execute_script("""const plain = window.fetch;
        window.fetch = (url, o) => plain(url, o && o.body ? { ...o, body: JSON.stringify({ ...JSON.parse(o.body), ignore_eos: true }) } : o);""")
    choose(browser, "most", "8000")
    ask(browser, "Tell a very long story about a lighthouse keeper, with many details.")
    used = wait(lambda: re.match(r"([1-9]\d*) of (\d+) × 64", text(browser, "pages")))
    assert int(used[1]) <= int(used[2])
    wait(lambda: text(browser, "running").startswith("1"))
    wait(lambda: re.match(r"[\d.]+$", text(browser, "rate-all")) and float(text(browser, "rate-all")) > 0)
    browser.find_element("id", "stop").click()
    answered(browser)
    m = s.idle()  # the server heard of it
    ended = {k: v for k, v in m.items() if k.startswith("request_success_total") and v}
    assert ended == {'request_success_total{finished_reason="cancelled"}': 1}, ended
    assert m["generation_tokens_total"] < 8000
    browser.get("about:blank")  # or it goes on asking a server that is gone


def test_a_new_conversation_knows_nothing_of_the_old_one(browser, real):
    browser.get(real.url + "/")
    wait(lambda: text(browser, "model") == real.name)
    browser.execute_script("""window.asked = []; const plain = window.fetch;
        window.fetch = (url, o) => { if (o && o.body) window.asked.push(o.body);
          return plain(url, o && o.body ? { ...o, body: JSON.stringify({ ...JSON.parse(o.body), ignore_eos: true }) } : o); };""")
    choose(browser, "most", "1000")
    ask(browser, "Tell a very long story.")
    wait(lambda: browser.find_elements("css selector", ".assistant")[-1].text)
    browser.find_element("id", "clear").click()
    answered(browser)
    assert not browser.find_elements("css selector", ".message, .note")
    choose(browser, "most", "4")
    ask(browser, "Hi")
    answered(browser)
    asked = [json.loads(body) for body in browser.execute_script("return window.asked")]
    assert asked[-1]["messages"] == [{"role": "user", "content": "Hi"}]


def test_what_is_left_out_is_the_servers_and_every_policy_can_be_chosen(browser, start):
    s = start()
    browser.get(s.url + "/")
    wait(lambda: text(browser, "model") == s.name)
    browser.execute_script("""window.asked = []; const plain = window.fetch;
        window.fetch = (url, o) => { if (o && o.body) window.asked.push(o.body); return plain(url, o); };""")
    for field in ("temperature", "most"):
        choose(browser, field, "")
    choose(browser, "window", "4")
    for policy in ("", "dense", "quest", "retro", "streaming"):
        browser.find_element("id", "clear").click()  # its context holds one answer
        choose(browser, "policy", policy)
        ask(browser, "Hi")
        answered(browser)
        assert not browser.find_elements("css selector", ".failed")
    asked = [json.loads(body) for body in browser.execute_script("return window.asked")]
    assert [a["attention"].get("policy") for a in asked] == [None, "dense", "quest", "retro", "streaming"]
    assert [a["attention"].get("window") for a in asked] == [4, None, None, 4, None]
    assert all(a["temperature"] is a["max_tokens"] is None for a in asked)
    browser.execute_script("""window.fetch = async () => new Response("<html>", { status: 502, statusText: "Bad Gateway" });""")
    ask(browser, "Hi")
    answered(browser)
    assert browser.find_element("css selector", ".failed").text == "502 Bad Gateway"
    browser.get("about:blank")


def test_a_narrow_screen_shows_it_whole(browser, real):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 320, "height": 600, "deviceScaleFactor": 1, "mobile": True})
    try:
        browser.get(real.url + "/")
        wait(lambda: text(browser, "model") == real.name)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 320
        assert browser.find_element("id", "clear").rect["x"] + browser.find_element("id", "clear").rect["width"] <= 320
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_errors_are_shown_and_nothing_is_fetched_elsewhere(browser, real):
    browser.get_log("browser")  # what others left
    browser.get(real.url + "/")
    wait(lambda: text(browser, "model") == real.name)
    choose(browser, "most", "0")
    ask(browser, "x")
    answered(browser)
    assert "max_tokens" in browser.find_elements("css selector", ".failed")[-1].text
    asked = []
    for entry in browser.get_log("performance"):
        what = json.loads(entry["message"])["message"]
        if what["method"] == "Network.requestWillBeSent" and what["params"]["documentURL"].startswith(real.url):
            asked.append(what["params"]["request"]["url"])
    assert asked and all(url.startswith((real.url + "/", "data:")) for url in asked), asked
    severe = [e for e in browser.get_log("browser") if e["level"] == "SEVERE" and "400 (Bad Request)" not in e["message"]]
    assert not severe, severe
