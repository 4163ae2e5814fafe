"""What a broker has not confirmed stays until it has."""

from models.transport.unconfirmed import Publication, Unconfirmed


def test_a_publication_stays_until_its_own_number_is_acknowledged() -> None:
    unconfirmed = Unconfirmed()
    one, two = Publication(1, "a", b"x", False), Publication(2, "b", b"y", True)
    unconfirmed.published(7, one)
    unconfirmed.published(9, two)
    assert unconfirmed.acknowledged(8) is None
    assert unconfirmed.publications == 2
    assert unconfirmed.acknowledged(9) == two
    assert unconfirmed.acknowledged(9) is None
    assert unconfirmed.take_publications() == [one]
    assert unconfirmed.publications == 0


def test_a_refused_subscription_is_wished_again_unless_that_is_no_longer_so() -> None:
    unconfirmed = Unconfirmed()
    unconfirmed.asked(["a", "b"], subscribe=True, mid=1)
    unconfirmed.asked(["b"], subscribe=False, mid=2)
    unconfirmed.refused(unconfirmed.answered(1))
    unconfirmed.refused(["b"])
    assert unconfirmed.unsent() == ["a"]
    assert unconfirmed.wished(subscribe=True) == ["a"]
    unconfirmed.asked(["a"], subscribe=True, mid=3)
    assert unconfirmed.unsent() == []
    assert unconfirmed.answered(3) == ["a"]


def test_the_last_wish_about_a_topic_counts_and_needs_its_own_answer() -> None:
    unconfirmed = Unconfirmed()
    unconfirmed.asked(["a", "b"], subscribe=True, mid=1)
    unconfirmed.asked(["a"], subscribe=False, mid=2)
    unconfirmed.asked(["a"], subscribe=True, mid=3)
    unconfirmed.asked(["c"], subscribe=False, mid=None)
    assert unconfirmed.answered(1) == ["b"]
    assert unconfirmed.answered(2) == []
    assert unconfirmed.wished(subscribe=True) == ["a"]
    assert unconfirmed.wished(subscribe=False) == ["c"]
    assert unconfirmed.answered(3) == ["a"]
    assert unconfirmed.wished(subscribe=True) == []
