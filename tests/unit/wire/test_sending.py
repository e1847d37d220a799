"""Windows and credit, against `h2`."""

from __future__ import annotations

import h2.settings
import pytest

from nodeproxy.wire import frames
from nodeproxy.wire.connection import Role
from tests.unit.wire.recorder import REQUEST, Link, bytes_of, client_with_stream, server_with_stream

pytestmark = pytest.mark.unit


class TestWindows:
    @pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
    @pytest.mark.parametrize("size", [1, 16384, 16385, 60000])
    def test_sizes_and_splits(self, step: int, size: int) -> None:
        if step == 1 and size > 16384:
            size = 20000
        link, stream_id = server_with_stream(step=step, stream_window_bytes=65535, connection_window_bytes=65535)
        payload = bytes_of(size)
        for start in range(0, size, 16384):
            link.peer.send_data(stream_id, payload[start : start + 16384])
        link.peer.end_stream(stream_id)
        link.pump()
        assert bytes(link.recorder.data[stream_id]) == payload
        assert link.recorder.named("end") == [("end", stream_id)]

    def test_megabytes_flow_with_small_windows_both_ways(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=65535, connection_window_bytes=65535)
        payload = bytes_of(300_000)
        sent = 0
        while sent < len(payload):
            count = min(link.peer.local_flow_control_window(stream_id), 16384, len(payload) - sent)
            assert count > 0
            link.peer.send_data(stream_id, payload[sent : sent + count])
            sent += count
            link.pump()
        assert bytes(link.recorder.data[stream_id]) == payload
        stream, sent = link.codec.streams[stream_id], 0
        while sent < len(payload):
            count = min(link.codec.sendable(stream), 16384, len(payload) - sent)
            assert count > 0
            link.send(stream, payload[sent : sent + count])
            sent += count
            link.pump()
        assert link.received(stream_id) == payload

    def test_blocked_stream_goes_on_when_the_peer_gives_credit(self) -> None:
        link, stream_id = client_with_stream()
        link.auto_credit = False
        stream = link.codec.streams[stream_id]
        link.send(stream, bytes_of(link.codec.sendable(stream)))
        link.pump()
        assert link.codec.sendable(stream) == 0
        link.recorder.events.clear()
        link.peer.acknowledge_received_data(40_000, stream_id)
        link.pump()
        assert {("window", None), ("window", stream_id)} == set(link.recorder.events)
        assert link.codec.sendable(stream) == 40_000

    def test_initial_window_change_applies_to_open_streams_and_may_go_negative(self) -> None:
        link, stream_id = client_with_stream()
        link.auto_credit = False
        stream = link.codec.streams[stream_id]
        link.send(stream, bytes(50_000))
        link.peer.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
        link.pump()
        assert stream.send_window == 10_000 - 50_000
        assert link.codec.sendable(stream) < 0
        link.recorder.events.clear()
        codes = h2.settings.SettingCodes
        link.peer.update_settings({codes.INITIAL_WINDOW_SIZE: 100_000, codes.MAX_FRAME_SIZE: 20_000})
        link.pump()
        assert stream.send_window == 50_000
        assert link.codec.peer_max_frame_size == 20_000
        assert link.recorder.events == [("settings",), ("window", None)]

    def test_window_before_the_acknowledgement_is_the_rfcs(self) -> None:
        """A peer that has not read our SETTINGS yet may send 65,535 bytes though we ask for less."""
        link = Link(Role.SERVER, stream_window_bytes=1000)
        link.peer.initiate_connection()
        link.peer.send_headers(1, REQUEST)
        link.recorder.credits = False
        for _ in range(3):
            link.peer.send_data(1, bytes(16384))
        link.pump()
        assert len(link.recorder.data[1]) == 3 * 16384
        assert link.recorder.streams[1].receive_window == 1000 - 3 * 16384
        link.peer.send_headers(3, REQUEST)
        link.pump()
        assert link.recorder.streams[3].receive_window == 1000

    def test_credit_comes_by_quarters(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=80_000, connection_window_bytes=160_000)
        link.recorder.credits = False
        link.peer.send_data(stream_id, bytes(16384))
        link.pump()
        stream = link.codec.streams[stream_id]
        link.codec.credit(stream, 16384)
        assert link.codec.take_out() == b""
        link.codec.credit_stream(stream, 4000)
        assert link.codec.take_out() == frames.window_update(stream_id, 20_384)
        link.codec.credit(None, 40_000)
        assert link.codec.take_out() == frames.window_update(0, 56_384)

    def test_stream_that_the_peer_ended_gets_no_more_window(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=65535, connection_window_bytes=1 << 20)
        link.recorder.credits = False
        link.peer.send_data(stream_id, bytes(16384))
        link.peer.send_data(stream_id, bytes(16384), end_stream=True)
        link.pump()
        link.codec.credit(link.codec.streams[stream_id], 32768)
        assert link.codec.take_out() == b""

    def test_padding_is_removed_and_credited(self) -> None:
        link, stream_id = server_with_stream(stream_window_bytes=65535, connection_window_bytes=65535)
        for _ in range(400):
            link.peer.send_data(stream_id, b"abc", pad_length=255)
            link.pump()
        assert bytes(link.recorder.data[stream_id]) == b"abc" * 400
