"""The chat page in a headless browser, by keyboard alone."""
import time

import pytest

import browser as browsers


@pytest.fixture
def page(server):
    if browsers.find() is None:
        pytest.skip("no Chromium on this machine: the chat page is not tested")
    opened = browsers.Browser()
    opened.open(server.url + "/")
    opened.js("settings.max_tokens = 60")  # a small model may ramble to the end of its context
    yield opened
    opened.close()


def test_the_page_loads_nothing_from_elsewhere(server):
    reply = server.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for path in ("/", "/style.css", "/app.js"):
        text = server.get(path).text
        assert "http://" not in text and "https://" not in text
    tag = reply.headers["etag"]
    assert server.get("/", headers={"If-None-Match": tag}).status_code == 304


def ask(page, text):
    page.js("document.getElementById('prompt').focus()")
    page.type(text)
    page.key("Enter")
    page.wait("document.querySelectorAll('.message.assistant').length > 0")


def test_a_conversation_by_keyboard(page):
    assert page.wait("document.getElementById('model').value") == "test"
    assert page.js("document.activeElement.id") == "prompt"
    ask(page, "Say hello in one short sentence.")
    page.wait("document.querySelector('.message.assistant .text').textContent.length > 0")
    page.wait("document.getElementById('stop').hidden", 60)
    assert "tok/s" in page.js("document.querySelector('.message.assistant .rate').textContent")
    assert page.js("document.activeElement.id") == "prompt"

    # A second one beside it; the first is still there, also after a reload.
    page.key("n", "KeyN", alt=True)
    page.wait("document.getElementById('messages').children.length === 0")
    ask(page, "What is two and two?")
    page.wait("document.getElementById('stop').hidden", 60)
    assert page.js("document.querySelectorAll('#conversations li').length") == 2
    page.key("ArrowDown", alt=True)
    page.wait("document.querySelector('.message.user .text').textContent.startsWith('Say hello')")
    page.open(page.js("location.href"))
    assert page.wait("document.querySelectorAll('#conversations li').length") == 2
    assert page.problems() == []


def test_escape_stops_a_reply(server, page):
    page.js("delete settings.max_tokens")
    ask(page, "Write a story of a thousand words about the sea.")
    page.wait("document.querySelector('.message.assistant .text').textContent.length > 10")
    page.key("Escape")
    page.wait("document.getElementById('stop').hidden", 10)
    server.wait_idle(20)
    assert "stopped" in page.js("document.querySelector('.message.assistant .rate').textContent")


def test_settings_reach_the_request(page):
    page.js("window.sent = []; const real = fetch; window.fetch = (url, options) => { sent.push(options && options.body); return real(url, options); }")
    page.key("s", "KeyS", alt=True)
    page.wait("document.getElementById('settings').open")
    for field, value in (("set-temperature", "0"), ("set-max_tokens", "5"), ("set-system", "Be brief.")):
        page.js(f"document.getElementById('{field}').value = ''; document.getElementById('{field}').focus()")
        page.type(value)
    page.key("Escape")
    page.wait("!document.getElementById('settings').open")
    ask(page, "Hi")
    page.wait("document.getElementById('stop').hidden", 60)
    body = page.js("JSON.parse(sent.filter(Boolean).pop())")
    assert body["temperature"] == 0 and body["max_tokens"] == 5
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert "length" in page.js("document.querySelector('.message.assistant .rate').textContent")


def test_text_of_the_model_is_never_markup(page):
    page.wait("document.getElementById('model').value")
    page.js("""current.messages.push({role: 'assistant', content: '<img src=x onerror="window.hit=1">\\n\\n```html\\n<script>window.hit=1</script>\\n```'}); show()""")
    time.sleep(0.2)
    assert page.js("window.hit === undefined && document.querySelector('#messages img, #messages script') === null")
    assert page.js("document.querySelector('.code code').textContent") == "<script>window.hit=1</script>"


def test_it_fits_a_phone_and_the_dark(server):
    if browsers.find() is None:
        pytest.skip("no Chromium on this machine: the chat page is not tested")
    phone = browsers.Browser(390, 780, dark=True)
    try:
        phone.open(server.url + "/")
        assert phone.js("document.documentElement.dataset.theme") == "dark"
        phone.js("current.title = 'A long title '.repeat(20); show()")
        assert phone.js("innerWidth") == 390 and phone.js("document.documentElement.scrollWidth") <= 390
    finally:
        phone.close()


def test_every_control_has_a_name(page):
    page.wait("document.getElementById('model').value")
    unnamed = page.js("""[...document.querySelectorAll('button, input, select, textarea, dialog, nav, section')].filter((node) =>
        !(node.getAttribute('aria-label') || node.getAttribute('aria-labelledby') || node.textContent.trim() || (node.labels && node.labels.length))).length""")
    assert unnamed == 0
