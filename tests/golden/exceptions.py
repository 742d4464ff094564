"""The list of all that differs from the reference on purpose, or cannot be compared. Everything else must be equal."""

from collections.abc import Mapping

UNLIKE_THE_REFERENCE: Mapping[str, str] = {
    "counters that wrap": (
        "The reference's counters start again after as many calls as a clip has steps, also where its sampler makes more "
        "of them (PNDM nine). Ours count every call of the clip. Checked: the reference's letters follow from counters "
        "that wrap, ours from counters that do not, and with the reference's letters our numbers are the reference's."
    ),
    "counters that are not reset": (
        "The reference's counters go on where the clip before left them. Our plan is made anew for every clip. Checked: the "
        "reference's second clip follows from counters that go on; our second clip is our first, bit by bit."
    ),
    "counters that two passes share": (
        "Vchitect's unconditional and conditional pass share one set of counters and one store, so the second reuses the "
        "first's attention. Our passes never reuse across guidance branches. Checked: the reference's letters only."
    ),
    "outputs of the clip before": (
        "With counters that go on, the reference may reuse an output of the clip before. We keep none. "
        "Checked: letters only."
    ),
    "stored and not reused": (
        "The reference stores an MLP output at every key timestep and may leave it in its store. We keep only what is "
        "reused. Checked: the letters S and what is left follow from its store; ours reuse the same outputs."
    ),
    "intermediate results": "Tensors named mid.* help to find an error. The results that they lead to are compared.",
}


def reason(name: str) -> str:
    """Returns an entry's reason. A check that leaves something out calls this, so that it names an entry of the list."""
    return UNLIKE_THE_REFERENCE[name]
