import torch
from hypothesis import given
from hypothesis import strategies as st

from fperr.theory.scenarios import SCENARIOS, assigned_label, classify, ranked

few_values = st.lists(st.integers(-2, 2).map(float), min_size=2, max_size=8)


@given(logits=few_values)
def test_ranking_is_descending_and_ties_keep_the_lower_index(logits):
    order = ranked(torch.tensor([logits]))[0].tolist()
    assert order == sorted(range(len(logits)), key=lambda i: (-logits[i], i))


@given(logits=few_values)
def test_an_assigned_label_lands_in_its_scenario(logits):
    order = ranked(torch.tensor([logits]))
    for scenario in SCENARIOS.values():
        label = assigned_label(order, scenario)
        assert classify(order, label, targeted=scenario.targeted) == [scenario]


@given(logits=few_values, label=st.integers(0, 7))
def test_success_is_about_the_prediction(logits, label):
    label %= len(logits)
    order = ranked(torch.tensor([logits]))
    leads = logits.index(max(logits)) == label
    untargeted = classify(order, torch.tensor([label]), targeted=False)[0]
    targeted = classify(order, torch.tensor([label]), targeted=True)[0]
    assert untargeted.name == ("untargeted_unsuccessful" if leads else "untargeted_successful")
    assert targeted.name == ("targeted_successful" if leads else "targeted_unsuccessful")
    assert untargeted.twin == targeted
    assert targeted.twin == untargeted
