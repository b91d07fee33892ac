import base64
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from client.credentials import IdentityProblem, Key, NotAToken, Token
from client.identity import FolderUnusable, Identity, State, StateFolder
from tests.client.scripted_gateway import NOW, make_token


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_identity(folder):
    """Open the folder with a token, or none, and close it again."""

    def opened(text=None):
        identity = Identity(folder, None if text is None else Token(text))
        identity.close()
        return identity

    return opened


def test_key_and_token_are_stored_for_their_user_alone(open_identity, folder, token):
    identity = open_identity(token)

    assert mode(folder) == 0o700
    assert mode(folder / "key.pem") == 0o600
    assert mode(folder / "token") == 0o600
    assert (folder / "token").read_text().strip() == token
    assert Key.from_pem((folder / "key.pem").read_bytes()).jwk() == identity.key.jwk()


def test_key_and_token_come_back(open_identity, token):
    first, second = open_identity(token), open_identity()

    assert second.token.reveal() == token
    assert second.key.jwk() == first.key.jwk(), "the key is bound at the gateway: it must stay"


def test_a_new_token_keeps_the_key(open_identity, token):
    first, second = open_identity(token), open_identity(make_token(NOW + 1))

    assert second.key.jwk() == first.key.jwk()


@pytest.mark.parametrize(
    ("stored", "given", "replaced"),
    [
        (NOW, NOW + 0.000001, True),
        (NOW, NOW - 1, False),
        (NOW, NOW, False),
        (NOW, None, False),
        (None, None, False),
        (None, NOW, True),
    ],
)
def test_only_a_newer_token_replaces_the_stored_one(stored, given, replaced, open_identity, folder):
    stored, given = make_token(stored), make_token(given)
    open_identity(stored)
    identity = open_identity(given)

    assert identity.token.reveal() == (given if replaced else stored)
    assert (folder / "token").read_text().strip() == (given if replaced else stored)
    assert identity.token_ignored is not replaced


def test_the_stored_token_given_again_is_nothing_to_speak_of(open_identity, token):
    open_identity(token)

    assert not open_identity(token).token_ignored


def test_the_first_run_needs_a_token(open_identity, folder):
    with pytest.raises(IdentityProblem, match=r"no registration token yet.* --token-file"):
        open_identity()

    assert not (folder / "key.pem").exists(), "there is nothing yet to make a key for"
    assert not StateFolder(folder).in_use(), "the lock should be free again"


def test_a_spoilt_stored_token_is_named(open_identity, folder, token):
    open_identity(token)
    (folder / "token").write_text("spoilt")

    with pytest.raises(NotAToken, match=str(folder / "token")):
        open_identity()
    assert open_identity(token).token.reveal() == token, "a good token mends it"


@pytest.mark.parametrize(
    "private",
    [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate(), None],
    ids=["P-384", "Ed25519", "garbage"],
)
def test_a_key_that_cannot_be_used_is_never_replaced(private, open_identity, folder, token):
    pem = b"garbage"
    if private is not None:
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    open_identity(token)
    (folder / "key.pem").write_bytes(pem)

    with pytest.raises(IdentityProblem, match=r"key\.pem is not a private P-256 key"):
        open_identity(token)
    assert (folder / "key.pem").read_bytes() == pem


def test_a_key_of_a_curve_that_nobody_knows_cannot_be_used(open_identity, folder, token):
    """As a flipped bit leaves it: `cryptography` raises another error than for what is no key at all."""
    open_identity(token)
    pem = (folder / "key.pem").read_text()
    der = bytearray(base64.b64decode("".join(pem.splitlines()[1:-1])))
    curve = bytes.fromhex("06082a8648ce3d030107")  # RFC 5480 section 2.1.1.1: secp256r1
    der[der.index(curve) + len(curve) - 1] ^= 0x40
    text = base64.encodebytes(bytes(der)).decode()
    (folder / "key.pem").write_text(
        f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n"
    )

    with pytest.raises(IdentityProblem, match=r"key\.pem is not a private P-256 key"):
        open_identity()


def test_a_key_with_a_password_cannot_be_used(open_identity, folder, token):
    open_identity(token)
    private = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )

    with pytest.raises(IdentityProblem, match=r"key\.pem is not a private P-256 key"):
        open_identity()


def test_files_that_were_open_to_others_are_closed(open_identity, folder, token):
    open_identity(token)
    for path in (folder, folder / "key.pem", folder / "token"):
        path.chmod(0o755)
    identity = open_identity()

    assert [mode(path) for path in (folder, folder / "key.pem", folder / "token")] == [
        0o700,
        0o600,
        0o600,
    ]
    assert identity.exposed == [str(folder / "key.pem"), str(folder / "token")]
    assert open_identity().exposed == [], "they are closed now"


def test_a_folder_that_others_could_write_to_is_closed_and_told(open_identity, folder, token):
    open_identity(token)
    folder.chmod(0o770)

    assert open_identity().exposed == [str(folder)]
    assert mode(folder) == 0o700


@pytest.mark.parametrize("bits", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(bits, folder, token):
    folder.mkdir()
    (folder / "somebody-elses").touch()
    folder.chmod(bits)

    with pytest.raises(IdentityProblem, match=f"other users may write to {folder}") as refused:
        Identity(folder, Token(token))
    assert "chmod go-w" in str(refused.value)
    assert mode(folder) == bits, "it is not ours to change"
    assert [path.name for path in folder.iterdir()] == ["somebody-elses"]


def test_a_folder_with_other_things_that_others_may_read_serves(folder, token):
    folder.mkdir(mode=0o755)
    (folder / "mine").touch()
    Identity(folder, Token(token)).close()

    assert mode(folder) == 0o755


@pytest.fixture
def give_away(monkeypatch):
    """Make a file or folder another user's."""

    def give_away(path):
        if os.geteuid() == 0:
            os.chown(path, 65534, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 65534)

    return give_away


@pytest.mark.parametrize("name", ["", "key.pem", "token", "state.json", "lock"])
def test_what_belongs_to_another_user_is_refused(name, open_identity, folder, token, give_away):
    open_identity(token).update_state(connected=False)
    give_away(folder / name)

    with pytest.raises(IdentityProblem, match="belongs to another user"):
        open_identity(token)


@pytest.mark.parametrize("name", ["key.pem", "token", "state.json", "operations.db", "lock"])
def test_a_link_in_the_place_of_a_file_is_refused(name, folder, token, tmp_path):
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(IdentityProblem, match=f"{folder / name} is a symbolic link"):
        Identity(folder, Token(token))
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_in_the_place_of_a_file_is_refused(folder, token):
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "token")

    with pytest.raises(IdentityProblem, match="token is not a regular file"):
        Identity(folder, Token(token))


def test_a_folder_behind_a_link_of_its_user_serves(folder, token, tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "real")
    Identity(folder, Token(token)).close()

    assert mode(tmp_path / "real" / "key.pem") == 0o600


def test_a_folder_behind_a_link_of_another_user_is_refused(folder, token, tmp_path, give_away):
    (tmp_path / "real").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "real")
    give_away(folder)

    with pytest.raises(IdentityProblem, match="belongs to another user"):
        Identity(folder, Token(token))


def test_a_second_process_is_refused(folder, token):
    identity = Identity(folder, Token(token))

    with pytest.raises(
        FolderUnusable, match=f"another ice-client runs with the state folder {folder}"
    ):
        Identity(folder, None)
    assert StateFolder(folder).in_use()
    identity.close()
    assert not StateFolder(folder).in_use()
    Identity(folder, None).close()


def test_a_folder_that_is_a_file_is_refused_in_one_line(folder, token):
    folder.write_text("")

    with pytest.raises(FolderUnusable, match=f"{folder} cannot be used: "):
        Identity(folder, Token(token))
    with pytest.raises(FolderUnusable):
        StateFolder(folder).token()


@pytest.mark.parametrize("name", ["token", "key.pem", "lock"])
def test_a_file_that_cannot_be_read_is_refused_in_one_line(name, folder, token):
    folder.mkdir()
    (folder / name).mkdir()

    with pytest.raises(FolderUnusable, match="Is a directory"):
        Identity(folder, Token(token))


def test_a_folder_without_permission_is_refused_in_one_line(folder, token):
    folder.mkdir(mode=0o000)
    mine = os.geteuid()
    if mine == 0:  # root may read everything, so for a moment it is somebody else
        os.seteuid(65534)
    try:
        with pytest.raises(
            FolderUnusable, match="Permission denied; it may belong to another user"
        ):
            Identity(folder, Token(token))
    finally:
        os.seteuid(mine)


def test_the_report_is_read_back(open_identity, folder, token):
    identity = open_identity(token)
    identity.update_state(ice_name="lab-1", code=4101, must_act=True)

    assert StateFolder(folder).state() == State(ice_name="lab-1", code=4101, must_act=True)
    assert mode(folder / "state.json") == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"connected": 5}', b"\xff\xfe"])
def test_a_spoilt_report_counts_as_none(content, folder):
    folder.mkdir()
    (folder / "state.json").write_bytes(content)

    assert StateFolder(folder).state() == State()


def test_a_missing_folder_is_empty_and_is_not_made_by_looking():
    folder = StateFolder(Path("/nonexistent/ice"))

    assert (folder.token(), folder.state(), folder.in_use()) == (None, State(), False)


@pytest.mark.parametrize("member", ["gateway", "home"])
def test_a_report_with_an_url_that_is_none_says_nothing(open_identity, folder, token, member):
    """As a flipped bit leaves it; a client would end with a stack trace when it compares the gateways."""
    open_identity(token)
    (folder / "state.json").write_text(json.dumps({member: "http://127.0.0.1:35!55"}))
    assert StateFolder(folder).state() == State()
