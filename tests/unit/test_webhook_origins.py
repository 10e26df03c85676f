"""Which server a URL means: the token goes to the configured ones, whatever a message writes."""

import pytest

from orchestrator.clients.origins import origin_of
from orchestrator.clients.webhook import WebhookSender
from orchestrator.config import WebhookSettings
from orchestrator.errors import ConfigError, InvalidInput, WebhookRefused


def sender(
    backend_url: str | None = None, *, origins: tuple[str, ...] = (), token: str | None = "token"
) -> WebhookSender:
    return WebhookSender(
        WebhookSettings(backend_url=backend_url, allowed_origins=origins, api_token=token, signing_secret=None)
    )


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.example.com/api/webhooks/1", "https://api.example.com"),
        ("HTTPS://API.Example.COM", "https://api.example.com"),
        ("https://api.example.com:443/", "https://api.example.com"),
        ("https://api.example.com:/", "https://api.example.com"),
        ("https://api.example.com./", "https://api.example.com"),
        ("http://api.example.com:80", "http://api.example.com"),
        ("http://api.example.com:443", "http://api.example.com:443"),
        ("http://127.0.0.1:8000/a?b#c", "http://127.0.0.1:8000"),
        ("http://[::0001]:8000/", "http://[::1]:8000"),
        ("https://bücher.example/", "https://xn--bcher-kva.example"),
        ("https://XN--BCHER-KVA.example/", "https://xn--bcher-kva.example"),
        ("https://한글.example/", "https://xn--bj0bj06e.example"),
        ("https://api.example.com/@me?a=b@c", "https://api.example.com"),
        ("https://good\u3002example", "https://good.example"),
        ("http://backend_1:9000", "http://backend_1:9000"),
    ],
)
def test_one_server_has_one_spelling(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com",
        "//api.example.com",
        "https://",
        "https:api.example.com",
        "https:///path",
        "ftp://api.example.com",
        "javascript://api.example.com",
        "https://good.example@evil.example/",
        "https://user:password@good.example/",
        "https://@good.example/",
        "https://good.example\\@evil.example/",
        "https://good.example\\.evil.example/",
        "https://good\t.example/",
        "https://good.example\n/",
        " https://good.example/",
        "https://good.example:99999/",
        "https://good.example:0/",
        "https://good.example:x/",
        "https://good..example/",
        "https://good%2eexample/",
        "https://-good.example/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[v1.a]/",
        "https://" + "a" * 64 + ".example/",
        "https://good\u2100.example/",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        origin_of(url)


@pytest.mark.parametrize("host", ["good.example/", "good.example:99999/", "[::1/", "good.example\\x/", ""])
@pytest.mark.parametrize("scheme", ["https", "ftp", ""])
def test_a_refused_url_does_not_repeat_a_password(scheme: str, host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        origin_of(f"{scheme}://user:hunter2@{host}")
    assert "hunter2" not in str(caught.value)


def test_the_backends_address_wins_over_the_messages() -> None:
    assert sender("https://api.example.com/").base_url("https://evil.example/x") == "https://api.example.com"


def test_a_path_of_the_backends_address_is_kept() -> None:
    assert sender("https://API.example.com:443/v2/").base_url(None) == "https://api.example.com/v2"


@pytest.mark.parametrize(
    "url", ["https://api.example.com/api/x", "https://API.EXAMPLE.COM:443/x", "https://api.example.com./x"]
)
def test_a_messages_origin_is_called_where_it_is_listed_and_in_the_listed_spelling(url: str) -> None:
    assert sender(origins=("https://Api.Example.com",)).base_url(url) == "https://api.example.com"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/x",
        "http://api.example.com/x",
        "https://api.example.com:8443/x",
        "https://api.example.com.evil.example/x",
        "https://evilapi.example.com/x",
        "https://api.example.com@evil.example/x",
        "https://fa\u00df.example/x",
        "not a url",
        "",
        None,
    ],
)
def test_any_other_origin_is_refused_for_good(url: str | None) -> None:
    with pytest.raises(WebhookRefused) as caught:
        sender(origins=("https://api.example.com", "https://fa\u00dfx.example")).base_url(url)
    assert not caught.value.retryable


def test_without_a_list_no_message_chooses_a_server() -> None:
    with pytest.raises(WebhookRefused, match="WEBHOOK_ALLOWED_ORIGINS does not list"):
        sender(token=None).base_url("https://api.example.com/x")


@pytest.mark.parametrize(
    ("backend_url", "origins", "variable"),
    [
        ("https://user:hunter2@api.example.com", (), "BACKEND_URL"),
        ("https://api.example.com/?a=b", (), "BACKEND_URL"),
        ("api.example.com", (), "BACKEND_URL"),
        (None, ("https://api.example.com/path",), "WEBHOOK_ALLOWED_ORIGINS"),
        (None, ("https://*.example.com",), "WEBHOOK_ALLOWED_ORIGINS"),
    ],
)
def test_a_wrong_address_in_the_settings_names_its_variable(
    backend_url: str | None, origins: tuple[str, ...], variable: str
) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        sender(backend_url, origins=origins)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", [None, "", "a b", "a\nb", "tökén"])
def test_a_missing_or_broken_token_is_refused_without_showing_it(token: str | None) -> None:
    with pytest.raises(ConfigError, match="INTERNAL_API_TOKEN") as caught:
        sender("https://api.example.com", token=token)
    assert not token or token not in str(caught.value)
