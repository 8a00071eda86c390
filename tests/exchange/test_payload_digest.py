"""The digest by which two runs are compared; a change of it needs a line in CHANGELOG."""

from flwr_splitfc.exchange.server.accounts.payload_digest import PayloadDigest


def digest(*steps: tuple[bytes, ...], session: str = "train/0/1/") -> int:
    found = PayloadDigest(session)
    for payloads in steps:
        found.add(*payloads)
    return found.value


def test_it_is_that_of_all_runs_before():
    # SHA-256 of the session, and of each payload behind its length, to 128 bits
    wanted = 0xBF143F3630C502189E0596EF763A9F93
    assert digest((b"ab", b""), (b"c",)) == wanted


def test_order_borders_and_session_show_in_it():
    found = digest((b"ab", b"c"))
    assert found != digest((b"c", b"ab"))
    assert found != digest((b"a", b"bc"))
    assert found != digest((b"ab", b"c"), session="train/1/1/")
    assert found == digest((b"ab",), (b"c",))
