"""Which addresses a webhook may speak to unless its channel allows more."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.alerts.address import connect, is_public
from mlflow_green.errors import ChannelFailed


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "239.1.2.3",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "192.0.0.192",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::1",
        "2001:db8::1",
    ],
)
def test_an_address_behind_the_wall_is_not_public(address):
    assert not is_public(address)


@given(
    st.sampled_from(["10.0.0.0/8", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8", "fc00::/7", "fe80::/10"]),
    st.data(),
)
def test_no_address_of_a_private_network_is_public(network, data):
    known = ipaddress.ip_network(network)
    inside = known[data.draw(st.integers(0, known.num_addresses - 1))]
    assert not is_public(str(inside))
    if inside.version == 4:
        assert not is_public(f"::ffff:{inside}")
        assert not is_public(f"64:ff9b::{inside}")


def test_a_name_with_one_private_address_among_public_ones_is_refused():
    def resolve(host, port, **_options):
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    with pytest.raises(ChannelFailed, match=r"allow: \[private\]"):
        connect("hooks.example", 443, allows_private=False, timeout_seconds=1, resolve=resolve)
