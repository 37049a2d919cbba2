"""The ledger finds what it is there to find: each broken promise is told, and a run that kept them all is told nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.faults.ledger import Entry, Ledger, Text

TEA = "tea"
ALICE, BOB = "alice", "bob"
PHONE, TABLET, LAPTOP = "alice/phone", "alice/tablet", "bob/laptop"
TEXTS = 6


@dataclass
class Scene:
    """alice's phone and bob's laptop have said three texts each, in turns, and everybody has everything."""

    ledger: Ledger = field(default_factory=lambda: Ledger({TEA: [ALICE, BOB]}, {PHONE: ALICE, TABLET: ALICE, LAPTOP: BOB}))
    histories: dict[tuple[str, str], list[Entry]] = field(default_factory=lambda: {(ALICE, TEA): [], (BOB, TEA): []})

    def __post_init__(self) -> None:
        for number in range(1, TEXTS + 1):
            device, user_id = ((PHONE, ALICE), (LAPTOP, BOB))[number % 2]
            self.ledger.wrote(Text(f"id-{number}", TEA, user_id, device, number, f"text {number}"))
            self.ledger.sent(f"id-{number}", self.at(number), number)
            for reader in (ALICE, BOB):
                self.histories[reader, TEA].append(self.entry(number, reader))
            for other in {PHONE, TABLET, LAPTOP} - {device}:
                self.ledger.came(other, self.entry(number, self.ledger.devices[other]))

    def at(self, number: int) -> int:
        """Elsewhere something is said too: the log's ids have gaps in one conversation, seq has none."""
        return 10 * number

    def entry(self, number: int, reader: str) -> Entry:
        text = self.ledger.texts[f"id-{number}"]
        client_id = text.client_id if text.user_id == reader else None
        return Entry(self.at(number), TEA, number, text.user_id, client_id, text.content)

    def everywhere(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        """What was stored is changed, as it is shown to everybody; what had come to the devices is not."""
        for whose, history in self.histories.items():
            self.histories[whose] = change(history)

    def faults(self) -> list[str]:
        return self.ledger.judge(self.histories)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def renumbered(history: list[Entry]) -> list[Entry]:
    return [entry._replace(seq=seq) for seq, entry in enumerate(history, 1)]


def test_a_run_that_kept_every_promise_is_told_nothing(scene: Scene) -> None:
    assert scene.faults() == []


def test_a_repeat_of_what_came_before_and_an_ack_given_again_are_no_faults(scene: Scene) -> None:
    scene.ledger.came(TABLET, scene.entry(2, ALICE))
    scene.ledger.sent("id-2", scene.at(2), 2, duplicate=True)
    assert scene.faults() == []
    assert (scene.ledger.counts["repeated"], scene.ledger.counts["duplicate acks"], scene.ledger.counts["sent"]) == (1, 1, TEXTS)


def test_ones_own_text_that_comes_with_a_resend_is_no_fault_for_its_ack_had_told_it(scene: Scene) -> None:
    for number in (1, 2, 3):
        scene.ledger.came(PHONE, scene.entry(number, ALICE))
    assert scene.faults() == []


def test_a_lost_message_is_found_whoever_has_taken_its_place(scene: Scene) -> None:
    scene.everywhere(lambda history: history[:-1])
    assert any("LOST: id-6, sent as 60" in fault for fault in scene.faults())
    assert any("message 60 came and is no longer there" in fault for fault in scene.faults())


def test_a_lost_message_that_leaves_no_hole_is_found(scene: Scene) -> None:
    scene.everywhere(lambda history: renumbered(history[:2] + history[3:]))
    faults = scene.faults()
    assert any("LOST: id-3" in fault for fault in faults)
    assert any("id-4 was told 40/4, and stands as 40/3" in fault for fault in faults)


def test_a_doubled_message_is_found(scene: Scene) -> None:
    scene.everywhere(lambda history: [*history, history[2]._replace(message_id=70, seq=7)])
    for device in scene.ledger.devices:
        scene.ledger.came(device, scene.histories[scene.ledger.devices[device], TEA][-1])
    assert {fault.split(": ", 1)[1] for fault in scene.faults()} >= {"id-3 stands 2 times: [30, 70]"}


def test_a_second_ack_with_another_place_is_found(scene: Scene) -> None:
    scene.ledger.sent("id-3", 70, 7)
    assert scene.faults()[0] == "id-3 was acknowledged as message 30 and again as 70"


def test_a_swapped_pair_is_found_where_it_is_stored(scene: Scene) -> None:
    def swap(history: list[Entry]) -> list[Entry]:
        third, fourth = history[2], history[3]
        return [
            *history[:2],
            fourth._replace(message_id=third.message_id, seq=third.seq),
            third._replace(message_id=fourth.message_id, seq=fourth.seq),
            *history[4:],
        ]

    scene.everywhere(swap)
    faults = scene.faults()
    assert any("id-3 was told 30/3, and stands as 40/4" in fault for fault in faults)
    assert any(f"{TABLET}: message 30 came as" in fault for fault in faults)


def test_a_swapped_pair_is_found_where_it_came(scene: Scene) -> None:
    came = scene.ledger.arrivals[TABLET]
    came[1], came[2] = came[2], came[1]
    assert scene.faults() == [f"{TABLET}: message 20 came for the first time after 30"]


def test_an_order_that_is_not_everybodys_is_found(scene: Scene) -> None:
    scene.histories[BOB, TEA] = renumbered([*scene.histories[BOB, TEA][:3], *scene.histories[BOB, TEA][4:]])
    assert f"{TEA} is not the same for {ALICE} and {BOB}" in scene.faults()


def test_texts_of_one_device_in_another_order_than_it_said_them_are_found() -> None:
    scene = Scene()
    first, second = scene.ledger.texts["id-1"], scene.ledger.texts["id-3"]
    first.number, second.number = second.number, first.number
    assert scene.faults() == [f"{LAPTOP}: id-1 (10) was said after id-3 (30)"]
    first.put_off = True
    assert scene.faults() == [], "what was put off may be overtaken"


def test_a_hole_is_found_in_a_history_and_on_a_device(scene: Scene) -> None:
    scene.everywhere(lambda history: [*history[:5], history[5]._replace(seq=7)])
    assert any("a hole: seq 7 stands where 6 should (message 60)" in fault for fault in scene.faults())
    scene = Scene()
    del scene.ledger._stored[TABLET][40]
    scene.ledger.arrivals[TABLET] = [entry for entry in scene.ledger.arrivals[TABLET] if entry.message_id != 40]
    assert scene.faults() == [f"{TABLET}: message 40 is missing: 40/4 'text 4'"]


def test_a_wrong_text_is_found_where_it_is_stored_and_where_it_came(scene: Scene) -> None:
    scene.everywhere(lambda history: [entry._replace(content="tampered") if entry.seq == 4 else entry for entry in history])
    faults = scene.faults()
    assert any("id-4 has another text" in fault for fault in faults)
    assert any("message 40 was written by nobody" in fault for fault in faults)
    scene = Scene()
    scene.ledger._stored[TABLET][40] = scene.entry(4, ALICE)._replace(content="tampered")
    assert scene.faults() == [f"{TABLET}: message 40 came as 40/4 'tampered' and stands as 40/4 'text 4'"]


def test_a_repeat_that_differs_from_the_first_copy_is_found(scene: Scene) -> None:
    scene.ledger.came(TABLET, scene.entry(2, ALICE)._replace(content="tampered"))
    assert scene.faults() == [f"{TABLET}: message 20 came twice and differs: 20/2 'text 2', 20/2 'tampered'"]


def test_a_text_in_another_persons_name_is_found(scene: Scene) -> None:
    scene.everywhere(lambda history: [entry._replace(sender_id=BOB) if entry.seq == 4 else entry for entry in history])
    assert any("id-4 is shown as sent by bob" in fault for fault in scene.faults())


def test_a_queued_text_is_owed_although_its_device_has_forgotten_it(scene: Scene) -> None:
    text = Text("id-7", TEA, ALICE, PHONE, 7, "text 7")
    scene.ledger.wrote(text)
    scene.ledger.queued("id-7")
    text.forgotten = True
    assert scene.ledger.unseen() == [text]
    assert any("LOST: id-7, queued" in fault for fault in scene.faults())
    for reader in (ALICE, BOB):
        scene.histories[reader, TEA].append(scene.entry(7, reader))
    for device in (TABLET, LAPTOP):
        scene.ledger.came(device, scene.entry(7, scene.ledger.devices[device]))
    assert scene.faults() == [] and scene.ledger.unseen() == []


def test_what_was_never_answered_and_what_was_refused_is_told(scene: Scene) -> None:
    scene.ledger.wrote(Text("id-7", TEA, ALICE, PHONE, 7, "text 7"))
    assert scene.faults() == ["id-7 was never answered"]
    scene.ledger.refused("id-7", "not_found")
    assert scene.faults() == ["id-7 was refused with not_found"]
