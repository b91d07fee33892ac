"""Which webhooks there may be, and when a message is sent again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest

from gateway.core.operation import NotValid
from gateway.core.webhook import (
    GIVE_UP,
    Notice,
    Webhook,
    check_events,
    check_name,
    check_url,
    failed,
    gives_up,
    origin,
    seconds_left,
    target_fault,
    wait_after,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]


def a_webhook(*events):
    return Webhook("w", "ops", "https://a.example", events, True, NOW, "", 0, None, "root", NOW)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?c=d",
        "https://93.184.216.34/",
        "https://[2606:4700::1111]/x",
    ],
)
def test_urls_of_the_internet_are_accepted(url):
    assert check_url(url, []) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hooks.example.com", "needs https"),
        ("ftp://hooks.example.com", "needs https://"),
        ("hooks.example.com", "needs https://"),
        ("https://", "needs https://"),
        ("https://a:0/", "needs https://"),
        ("https://a:99999/", "is not a URL"),
        ("https://[::1", "is not a URL"),
        ("https://root:secret@a.example/", "no user"),
        ("https://a.example/#here", "fragment"),
        ("https://a.example/ b", "no space"),
        ("https://ä.example/", "ASCII"),
        ("https://a.example/" + "a" * 2000, "2000 characters"),
        ("https://10.1.2.3/", "not a public address"),
        ("https://[::ffff:10.1.2.3]/", "not a public address"),
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("http://127.0.0.1:9000/", "webhooks.allow"),
    ],
)
def test_other_urls_are_refused(url, reason):
    with pytest.raises(NotValid, match=reason) as refused:
        check_url(url, [])
    assert refused.value.field == "url"


def test_plain_http_is_for_loopback_that_is_allowed():
    for url in ("http://127.0.0.1:9000/", "http://localhost:9000/", "http://[::1]:9000/"):
        assert check_url(url, LOOPBACK) == url
    assert target_fault("10.0.0.1", [ip_network("10.0.0.0/8")], loopback_only=True) is not None
    with pytest.raises(NotValid, match="needs https"):
        check_url("http://10.0.0.1/", [ip_network("10.0.0.0/8")])
    assert check_url("https://10.0.0.1/", [ip_network("10.0.0.0/8")])


def test_events_are_actions_notices_or_all():
    assert check_events(["provision", "ice.away", "provision"]) == ("provision", "ice.away")
    assert check_events(["*"]) == ("*",)
    for bad in (["nonsense"], ["gap"], ["test"], []):
        with pytest.raises(NotValid):
            check_events(bad)


def test_a_name_is_printable():
    assert check_name("ops") == "ops"
    for bad in ("", "a\nb", "a" * 129):
        with pytest.raises(NotValid):
            check_name(bad)


def test_what_a_webhook_wants():
    everything = a_webhook("*")
    assert everything.follows_log
    assert everything.takes_notices
    assert everything.wants("provision")
    assert everything.wants(Notice.AWAY)
    log = a_webhook("deregister")
    assert (log.follows_log, log.takes_notices) == (True, False)
    assert log.wants("deregister")
    assert not log.wants("provision")
    notices = a_webhook("ice.away")
    assert (notices.follows_log, notices.takes_notices) == (False, True)


def test_the_wait_doubles_up_to_an_hour():
    waits = [wait_after(attempts) for attempts in range(1, 15)]
    assert waits[:3] == [5, 10, 20]
    assert waits[9:] == [2560, 3600, 3600, 3600, 3600]
    assert wait_after(10**9) == 3600


def test_attempts_are_counted_for_one_message():
    first = failed(None, "a", NOW, "answered 500")
    assert (first.attempts, first.since, first.retry) == (1, NOW, NOW + timedelta(seconds=5))
    second = failed(first, "a", NOW + timedelta(seconds=6), "answered 500")
    assert (second.attempts, second.since) == (2, NOW)
    assert failed(second, "b", NOW, "answered 500").attempts == 1


def test_it_is_given_up_after_three_days():
    failing = failed(None, "a", NOW, "")
    assert not gives_up(failing, NOW + GIVE_UP - timedelta(seconds=1))
    assert gives_up(failing, NOW + GIVE_UP)


def test_a_clock_that_was_set_back_does_not_delay_it():
    failing = failed(None, "a", NOW, "")
    assert seconds_left(failing, NOW) == 5
    assert seconds_left(failing, NOW + timedelta(seconds=3)) == 2
    assert seconds_left(failing, NOW + timedelta(hours=1)) == 0
    assert seconds_left(failing, NOW - timedelta(days=1)) == 0


def test_the_path_of_a_url_is_not_shown():
    assert origin("https://a.example:8443/T0/secret?x=y") == "https://a.example:8443"
