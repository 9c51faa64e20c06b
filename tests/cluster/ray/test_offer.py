from expertfleet.cluster.ray.offer import Offer, offers_among


def test_every_offer_of_a_seat_is_another_one() -> None:
    assert len({Offer.new("expert-3") for _ in range(8)}) == 8


def test_an_offer_is_found_again_in_its_name_and_its_resource() -> None:
    offer = Offer.new("attention-12")
    assert Offer.parse(offer.name) == offer
    assert offers_among({offer.resource: 1.0}) == [offer]


def test_other_resources_and_names_are_no_offers() -> None:
    used_up = Offer("expert-1", "b")
    resources = {"CPU": 4, "seat-expert-0.a": 1, used_up.resource: 0, "seat-attention-2.c": 1.0, "seat-expert-5": 1}
    assert offers_among(resources) == [Offer("expert-0", "a"), Offer("attention-2", "c")]
    assert [Offer.parse(name) for name in ("", "expert-0", ".a", "expert-0.")] == [None] * 4
