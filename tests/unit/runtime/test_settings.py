"""The settings: one table, three sources, and faults that say what to do."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from gateway.core.attention import Expectations
from gateway.core.times import later, utc_now
from gateway.core.version_key import version_key
from gateway.runtime.eventloop import listen_error
from gateway.runtime.setting_sources import load, misspelt_variables, read
from gateway.runtime.setting_types import duration, duration_text
from gateway.runtime.settings import SETTINGS, AddressUnavailable, BadOption, BadSetting
from gateway.runtime.sockets import CannotBind

DOCUMENTED = Path(__file__).parents[3] / "config" / "gateway.toml"


def given(key, value):
    """The value of a setting that was set as an option."""
    return getattr(load(None, {}, {key: value}), key.replace(".", "_"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "gateway.toml"


GONE = (
    "server.workers is gone: one gateway serves an SQLite file; for several use PostgreSQL and"
    " ice-gateway@.service"
)


@pytest.mark.parametrize("value", [1, 4, "four"])
def test_a_setting_that_is_gone_says_what_to_do_instead(file, value):
    file.write_text(f"[server]\nworkers = {value!r}\n")
    for kind, *source in (
        (BadSetting, file, {}),
        (BadSetting, None, {"ICE_GATEWAY_SERVER__WORKERS": str(value)}),
        (BadOption, None, {}, {"server.workers": value}),
    ):
        with pytest.raises(BadSetting) as refused:
            load(*source)
        assert (str(refused.value), type(refused.value)) == (GONE, kind), source


# --- where a value comes from ------------------------------------------------------------------


def test_the_contracts_defaults():
    settings = load(None, {})
    assert (settings.server_host, settings.server_port) == (("127.0.0.1",), 8440)
    assert settings.server_public_url == ()
    assert settings.server_trusted_proxies == ()
    assert settings.server_tls_certificate is settings.server_tls_key is None
    assert settings.database_url == "sqlite:///ice-gateway.db"
    assert settings.database_path == Path("ice-gateway.db").absolute()
    assert settings.key_file == Path("ice-gateway.keys.json").absolute()
    assert settings.tokens_registration_ttl == 7 * 86400
    assert settings.ice_heartbeat == 30
    assert settings.metrics_listen == ("127.0.0.1", 9464)


def test_options_override_the_environment_which_overrides_the_file(file):
    file.write_text("[server]\nport = 1\nhost = 'h'\n[ice]\nheartbeat = '1m'\n")
    environ = {"ICE_GATEWAY_SERVER__PORT": "2", "ICE_GATEWAY_SERVER__HOST": "::1", "PATH": "/bin"}
    settings = load(file, environ, {"server.port": 3})
    assert settings.server_port == 3
    assert settings.server_host == ("::1",)
    assert settings.ice_heartbeat == 60
    assert settings.log_level == "info"


def test_variables_of_the_gateway_that_are_no_settings_are_left_alone():
    assert load(None, {"ICE_GATEWAY_CONFIG": "x", "OTHER__KEY": "x"}) == load(None, {})


def test_it_is_known_where_each_value_comes_from(file):
    file.write_text("[server]\nport = 1\nhost = 'h'\n[ice]\nheartbeat = '1m'\n")
    environ = {"ICE_GATEWAY_SERVER__PORT": "2", "ICE_GATEWAY_SERVER__HOST": "::1"}
    found = {each.setting.key: each for each in read(file, environ, {"server.port": 3})}
    assert list(found) == [setting.key for setting in SETTINGS]
    keys = ("server.port", "server.host", "ice.heartbeat", "log.level")
    assert [(found[key].raw, found[key].parsed, found[key].origin) for key in keys] == [
        (3, 3, "command line"),
        ("::1", ("::1",), "ICE_GATEWAY_SERVER__HOST"),
        ("1m", 60, str(file)),
        ("info", "info", "default"),
    ]


def test_a_variable_that_lacks_an_underscore_is_warned_of():
    environ = {
        "ICE_GATEWAY_SERVER_PORT": "1",
        "ICE_GATEWAY_TOKENS_KEY_FILE": "keys",
        "ICE_GATEWAY_SERVER__HOST": "::1",
        "ICE_SERVER_PORT": "1",
        # Names that have a meaning, and those that Kubernetes sets.
        **dict.fromkeys(("ICE_GATEWAY_CONFIG", "ICE_GATEWAY_URL", "ICE_GATEWAY_TOKEN_FILE"), "x"),
        **dict.fromkeys(("ICE_GATEWAY_SERVICE_PORT", "ICE_GATEWAY_PORT_8440_TCP"), "x"),
    }
    port, keys = misspelt_variables(environ)
    assert port == (
        "the environment variable ICE_GATEWAY_SERVER_PORT is ignored: server.port is set by"
        " ICE_GATEWAY_SERVER__PORT, with two underscores after the section"
    )
    assert "tokens.key_file is set by ICE_GATEWAY_TOKENS__KEY_FILE" in keys


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_has_a_variable(setting):
    variable = f"ICE_GATEWAY_{setting.key.replace('.', '__').upper()}"
    default = setting.default
    text = ",".join(default) if isinstance(default, list | dict) else str(default)
    assert load(None, {variable: text}) == load(None, {})


def test_config_gateway_toml_documents_every_setting_with_its_default():
    text = DOCUMENTED.read_text(encoding="utf-8")
    assert tomllib.loads(text) == {section: {} for section in tomllib.loads(text)}
    uncommented = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    documented = {
        f"{section}.{name}": value
        for section, entries in tomllib.loads(uncommented).items()
        for name, value in entries.items()
    }
    assert documented == {setting.key: setting.default for setting in SETTINGS}


# --- what a value may be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "means"),
    [
        ("tokens.registration_ttl", "90s", 90),
        ("tokens.registration_ttl", "5m", 300),
        ("tokens.registration_ttl", "1.5h", 5400),
        ("tokens.registration_ttl", "2d", 172_800),
        ("tokens.registration_ttl", "36500d", 36_500 * 86_400),
        ("tokens.registration_ttl", 0, 0),
        ("tokens.registration_ttl", "0", 0),
        ("tokens.registration_ttl", "0s", 0),
        ("ice.inactive_after", "0", 0),
        ("ice.recommended_version", "", None),
        ("ice.recommended_version", "2.4", version_key("2.4")),
        ("server.port", 0, 0),
        ("server.port", "65535", 65535),
        ("server.public_url", "https://a/", ("https://a",)),
        ("server.public_url", "HTTPS://a", ("https://a",)),
        ("server.public_url", "https://a, http://b:1/p/", ("https://a", "http://b:1/p")),
        ("server.public_url", ["https://[::1]:8440/p"], ("https://[::1]:8440/p",)),
        ("server.public_url", "", ()),
        ("server.trusted_proxies", "10.0.0.1", (ip_network("10.0.0.1"),)),
        ("server.trusted_proxies", "::ffff:10.0.0.1", (ip_network("10.0.0.1"),)),
        (
            "server.trusted_proxies",
            ["10.0.0.0/8", "fd00::/8"],
            (ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
        ),
        ("server.tls_key", "~/key.pem", Path.home() / "key.pem"),
        ("server.host", "::1", ("::1",)),
        ("server.host", "fe80::1%eth0", ("fe80::1%eth0",)),
        ("server.host", "gate_way-1.example.", ("gate_way-1.example.",)),
        ("server.host", "0.0.0.0, ::", ("0.0.0.0", "::")),  # noqa: S104 - nothing is bound
        ("server.host", ["127.0.0.1", "::1", "127.0.0.1"], ("127.0.0.1", "::1")),
        (
            "server.host",
            [f"127.0.0.{n}" for n in range(16)],
            tuple(f"127.0.0.{n}" for n in range(16)),
        ),
        ("server.keepalive", "90s", 90),
        ("server.insecure", True, True),
        ("server.insecure", "TRUE", True),
        ("server.insecure", "false", False),
        ("tokens.key_file", "", None),
        ("metrics.listen", "", None),
        ("metrics.listen", "[::1]:0", ("::1", 0)),
        ("log.format", "json", "json"),
    ],
)
def test_what_a_value_means(key, value, means):
    assert given(key, value) == means


def test_what_is_expected_of_ices():
    assert load(None, {}).expectations == Expectations(None, timedelta(days=30))
    options = {"ice.recommended_version": "2.4", "ice.inactive_after": "0"}
    assert load(None, {}, options).expectations == Expectations(version_key("2.4"), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("server.tls_key", value) for value in ("a\0b", "~nobody-of-this-name/key.pem")),
        *(
            ("server.public_url", value)
            for value in ("https://a\n.example", "https://a\x7f.example")
        ),
        *(("ice.recommended_version", value) for value in ("new", "2.x", 2.4, "1" * 65)),
        *(
            ("tokens.registration_ttl", value)
            for value in [
                *(
                    "7",
                    "7 d",
                    "d",
                    "-1d",
                    "+1d",
                    "1e9d",
                    "7w",
                    "7D",
                    "7d ",
                    "",
                    "36501d",
                    "9" * 400 + "s",
                ),
                *(7, 7.5, True, False, ["7d"], None),
            ]
        ),
        *(("ice.heartbeat", value) for value in (0, "0", "0s", "0.0m")),
        *(("server.port", value) for value in (-1, 65536, "x", "", 80.0, True, None)),
        *(("server.keepalive", value) for value in ("0s", "0.9s", "61m", 75)),
        *(("ice.max_connections", value) for value in (0, -1, "0")),
        *(
            ("server.host", value)
            for value in [
                *("", 1, None, [], [1], " , ", [f"127.0.0.{n}" for n in range(17)]),
                *(
                    "a..b",
                    ".",
                    "a" * 64,
                    "two words",
                    "http://host",
                    "host:8440",
                    "[::1]",
                    "127.0.0.1/8",
                ),
            ]
        ),
        *(
            ("server.public_url", value)
            for value in [
                *("gateway.example", "wss://a", "ftp://a", "https://", "https:///p", "//a"),
                *("https://a..b", "https://a/{x}", "https://a/{", "https://a\\b"),
                *("https://u@a", "https://a?b", "https://a#b", "https://a:x", "https://a:0"),
                *(
                    "https://[::1",
                    "https://a/%C3%A4",
                    "https://a/ä",
                    "https://a/b c",
                    7,
                    [7],
                    {"a": "b"},
                ),
            ]
        ),
        *(
            ("server.trusted_proxies", value)
            for value in ("proxy", "10.0.0.1/8", "::/129", "fe80::1%eth0", 7)
        ),
        *(("server.tls_key", value) for value in (7, None, [])),
        *(("server.insecure", value) for value in (1, 0, "", "1", "yes", None)),
        *(
            ("database.url", value)
            for value in (
                "",
                "sqlite:///",
                "postgresql://h",
                "postgresql:///",
                "mysql://h/d",
                "sqlite://x",
                "sqlite::memory:",
                "sqlite:///a%00b",
                "~nobody-of-this-name/ice.db",
            )
        ),
        *(
            ("metrics.listen", value)
            for value in (
                "127.0.0.1",
                "a..b:1",
                ":9464",
                "h:x",
                "h:65536",
                "::1:9464",
                "h:1/p",
                "u@h:1",
                9464,
            )
        ),
        ("log.format", "xml"),
        ("log.level", "INFO"),
        ("log.level", ["info"]),
    ],
)
def test_a_value_that_is_not_accepted_is_named_with_what_is(key, value):
    with pytest.raises(BadSetting) as refused:
        load(None, {}, {key: value})
    [accepts] = [setting.accepts for setting in SETTINGS if setting.key == key]
    assert str(refused.value) == (
        f"{key} = {value!r} (from the command line) is not accepted: {accepts}"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:first/second@h/d",
        "postgresql://u:first#second@h/d",
        "postgresql://u:first?second@h/d",
        "postgresql://u:first@second@h/d",
        "postgres:/u:first:second@h/d",
        "postgresql://u:first/d",
        "mysql://h/d?password=first",
        ["postgresql://u:first@h/d"],
    ],
)
def test_a_database_url_that_is_not_accepted_does_not_show_its_password(url):
    with pytest.raises(BadSetting, match="write / as %2F") as refused:
        load(None, {}, {"database.url": url})
    assert not {"first", "second"} & set(re.findall("[a-z]+", str(refused.value)))


def test_the_longest_time_for_registration_still_fits_a_calendar():
    assert later(utc_now(), given("tokens.registration_ttl", "36500d")) is not None


@pytest.mark.parametrize("text", ["1s", "1m", "1h", "1d"])
def test_durations_agree_with_the_calendar(text):
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[text[-1]]
    assert duration(text) == timedelta(**{unit: 1}).total_seconds()


@pytest.mark.parametrize("text", ["1s", "90s", "90m", "25h", "7d"])
def test_a_duration_is_shown_as_it_is_typed(text):
    assert duration_text(int(duration(text))) == text


# --- faults name themselves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"[server]\nport = 'x'\n",
            "server.port = 'x' (from {file}) is not accepted: a port from 0",
        ),
        (b"[server]\nprot = 1\n", "server.prot in {file} is no setting; known are server.host,"),
        (b"[sever]\nport = 1\n", "sever.port in {file} is no setting; known are server.host,"),
        (b"port = 1\n", "port in {file} is outside any section; known are server.host,"),
        (b"[server\n", "{file} is not TOML: "),
        (b"[server]\nhost = '\xff'\n", "{file} is not TOML: "),
        (b"\xff\xfe[", "{file} is not TOML: "),
        ("[server]\n".encode("utf-16-le"), "{file} is not TOML: "),
    ],
)
def test_a_fault_in_the_file_names_the_key_and_the_file(file, content, says):
    file.write_bytes(content)
    with pytest.raises(BadSetting) as refused:
        load(file, {})
    assert str(refused.value).startswith(says.format(file=file))
    assert "\n" not in str(refused.value), "one line for a person"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_windows_wrote_is_read(file, encoding):
    file.write_bytes("[server]\nport = 3\n".encode(encoding))
    assert load(file, {}).server_port == 3


def test_an_unknown_key_is_answered_with_those_of_its_section(file):
    file.write_text("[log]\ncolour = true\n")
    with pytest.raises(BadSetting, match=r"known are log\.format, log\.level$"):
        load(file, {})


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("ICE_GATEWAY_SERVER__PORT", "server.port = 'x' (from ICE_GATEWAY_SERVER__PORT) is not"),
        ("ICE_GATEWAY_SERVER__PROT", "the environment variable ICE_GATEWAY_SERVER__PROT is no"),
        ("ICE_GATEWAY___", "the environment variable ICE_GATEWAY___ is no setting; known are"),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(variable, says):
    with pytest.raises(BadSetting) as refused:
        load(None, {variable: "x"})
    assert str(refused.value).startswith(says)


def test_a_file_that_is_missing_is_named(file):
    with pytest.raises(BadSetting) as refused:
        load(file, {})
    assert str(refused.value) == (
        f"the settings file {file} cannot be read: No such file or directory"
    )


# --- what follows from them --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "key_file"),
    [
        ("sqlite:///ice.db", "ice.db", "ice.keys.json"),
        ("sqlite:////var/lib/ice.db", "/var/lib/ice.db", "/var/lib/ice.keys.json"),
        ("sqlite:///a%20b/ice", "a b/ice", "a b/ice.keys.json"),
        ("data/ice.db", "data/ice.db", "data/ice.keys.json"),
    ],
)
def test_the_key_file_lies_beside_the_database(url, path, key_file):
    settings = load(None, {}, {"database.url": url})
    # A message that names one of them has the whole path.
    assert settings.database_path == Path(path).absolute()
    assert settings.key_file == Path(key_file).absolute()
    assert load(None, {}, {"database.url": settings.database_shown}) == replace(
        settings, database_url=settings.database_shown
    )
    for given, named in (("/etc/keys", Path("/etc/keys")), ("keys", Path("keys").absolute())):
        options = {"database.url": url, "tokens.key_file": given}
        assert load(None, {}, options).key_file == named


@pytest.mark.parametrize(
    ("urls", "prefixes"),
    [
        ([], ("",)),
        (["https://a", "https://b/"], ("",)),
        (["https://a/ice", "https://b/ice/", "https://c/x/y"], ("", "/ice", "/x/y")),
    ],
)
def test_everything_is_answered_with_and_without_the_prefixes(urls, prefixes):
    assert load(None, {}, {"server.public_url": urls}).prefixes == prefixes


# --- who can reach it ----------------------------------------------------------------------------

ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound
SECURE = "https://gateway.example"
PLAIN = "http://gateway.example"


def exposure(host="127.0.0.1", urls=(), **more):
    """What a start with these settings is warned of. Raises `BadSetting`."""
    options = {f"server.{name}": value for name, value in more.items()}
    given = {"server.host": host, "server.public_url": list(urls), **options}
    return load(None, {}, given).check_exposure()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_public_url(host):
    assert exposure(host) == []


@pytest.mark.parametrize("host", [ANYWHERE, "::", "10.0.0.1", "gateway.example", "localhost.x"])
@pytest.mark.parametrize("insecure", [True, False])
def test_beyond_loopback_the_gateway_asks_for_a_public_url(host, insecure):
    with pytest.raises(BadSetting, match=r"set server\.public_url \(or --public-url\)") as refused:
        exposure(host, insecure=insecure)
    assert host in str(refused.value)
    assert exposure(host, [SECURE], tls_certificate="pem", tls_key="key") == []


@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], [ANYWHERE, "::"], ["::1", "10.0.0.1"]])
def test_of_several_hosts_each_counts(hosts):
    exposed = [host for host in hosts if host not in ("127.0.0.1", "::1")]
    if not exposed:
        assert exposure(hosts) == []
        return
    with pytest.raises(BadSetting, match=r"set server\.public_url") as refused:
        exposure(hosts)
    assert f"server.host {exposed[0]} is reachable" in str(refused.value)
    with pytest.raises(BadSetting, match=f"server.host {exposed[0]} is reachable .* by plain http"):
        exposure(hosts, ["http://localhost"])


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ((ANYWHERE, [PLAIN]), PLAIN),
        ((ANYWHERE, [SECURE, PLAIN]), PLAIN),
        ((ANYWHERE, ["http://localhost:8440"]), ANYWHERE),
        ((ANYWHERE, [SECURE, "http://127.0.0.1"]), ANYWHERE),
    ],
)
def test_plain_http_beyond_loopback_has_to_be_insisted_on(where, names):
    trusting = {"trusted_proxies": "10.0.0.1"}
    with pytest.raises(BadSetting, match="plain http") as refused:
        exposure(*where, **trusting)
    assert names in str(refused.value)
    assert "--insecure" in str(refused.value)
    [warning] = exposure(*where, insecure=True, **trusting)
    assert names in warning
    assert "plain http" in warning


@pytest.mark.parametrize("insecure", [True, False])
def test_plain_http_by_a_proxy_of_this_machine_is_warned_of(insecure):
    [warning] = exposure("127.0.0.1", ["http://10.0.0.1/p"], insecure=insecure)
    assert "http://10.0.0.1/p is plain http" in warning


def test_tls_of_its_own_does_not_help_where_ices_are_sent_to_plain_http():
    with pytest.raises(BadSetting, match=PLAIN):
        exposure(ANYWHERE, [PLAIN], tls_certificate="pem", tls_key="key")


@pytest.mark.parametrize("host", ["127.0.0.1", ANYWHERE])
def test_where_tls_ends_at_a_proxy_it_is_asked_which(host):
    assert exposure(host, [SECURE], trusted_proxies="10.0.0.1") == []
    [warning] = exposure(host, [SECURE])
    assert "server.trusted_proxies is empty" in warning


@pytest.mark.parametrize("urls", [[], ["http://localhost:8440/p"], ["http://[::1]:8440"]])
def test_there_is_nothing_to_insist_on_within_one_machine(urls):
    assert exposure("127.0.0.1", urls, insecure=True) == exposure("127.0.0.1", urls) == []


@pytest.mark.parametrize(
    ("hsts", "more", "header"),
    [
        ("365d", {"public_url": [SECURE]}, "max-age=31536000"),
        ("1.5s", {"public_url": [PLAIN, SECURE]}, "max-age=2"),
        ("1h", {"tls_certificate": "pem", "tls_key": "key"}, "max-age=3600"),
        ("365d", {"public_url": [PLAIN]}, None),
        ("365d", {}, None),
        ("0", {"public_url": [SECURE]}, None),
    ],
)
def test_strict_transport_is_asked_for_where_there_is_https(hsts, more, header):
    given = {"server.hsts": hsts, **{f"server.{name}": value for name, value in more.items()}}
    assert load(None, {}, given).hsts == header


# --- addresses that cannot be had ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EADDRINUSE, AddressUnavailable),
        (errno.EADDRNOTAVAIL, AddressUnavailable),
        (errno.EACCES, BadSetting),
    ],
)
def test_an_address_that_may_be_free_later_is_told_from_one_that_is_forbidden(number, kind):
    fault = listen_error(load(None, {}), OSError(number, os.strerror(number)))
    assert type(fault) is kind
    assert str(fault).startswith(f"cannot listen on 127.0.0.1:8440: {os.strerror(number)};")


def test_of_several_addresses_the_one_that_failed_is_named():
    settings = load(None, {}, {"server.host": ["127.0.0.1", "::1"]})
    full = OSError(errno.EMFILE, "no handles")
    assert "cannot listen on 127.0.0.1:8440 and [::1]:8440: no" in str(listen_error(settings, full))
    fault = listen_error(settings, CannotBind("::1", full))
    assert str(fault).startswith("cannot listen on [::1]:8440: no handles; see server.host")
